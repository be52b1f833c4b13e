"""A profiler's trace of some steps, asked for by `config.profile_steps=(first, last)`.

Each process leaves its trace in `WORKDIR/profile/plugins/profile/steps-FIRST-LAST/`, where TensorBoard and
xprof look (`--logdir=WORKDIR/profile`); the file `*.trace.json.gz` opens in https://ui.perfetto.dev.
"""

import contextlib
import pathlib
import tempfile
from typing import Any

import jax
from etils import epath

FOLDER = "profile"
_RUNS = ("plugins", "profile")
_ENDINGS = (".xplane.pb", ".trace.json.gz")


class Profile:
  """Traces steps first to last of a run, both counted; a context that also ends a trace cut short."""

  def __init__(self, directory: epath.PathLike, steps: tuple[int, ...], *, start: int = 0):
    """Starts nothing.

    Args:
      directory: the workdir.
      steps: (first, last); () traces nothing.
      start: step that the run goes on from; what lies before it is not traced.
    """
    self._first, self._last = (max(steps[0], start + 1), steps[1]) if steps else (0, -1)
    self._folder = epath.Path(directory) / FOLDER
    self._scratch: tempfile.TemporaryDirectory | None = None

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_: Any) -> None:
    if self.tracing:
      with contextlib.suppress(OSError, RuntimeError):  # the error that ends the run is the one to tell
        self.stop()

  @property
  def tracing(self) -> bool:
    """Whether a trace is being recorded."""
    return self._scratch is not None

  def begins(self, step: int) -> bool:
    """Whether `step` is the first to be traced: call `start` when everything before is finished."""
    return step == self._first and self._first <= self._last

  def ends(self, step: int) -> bool:
    """Whether `step` is the last to be traced: call `stop` when it is finished."""
    return self.tracing and step == self._last

  def start(self) -> None:
    """Records from now on."""
    # On this machine's disk: the profiler cannot write to a bucket.
    self._scratch = tempfile.TemporaryDirectory()
    # Python's calls would drown the devices' work, and fill the trace's million events.
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(self._scratch.name, profiler_options=options)

  def stop(self) -> epath.Path:
    """Ends the trace and brings it to the workdir; gives its folder.

    Raises:
      OSError, RuntimeError: it cannot be written. The trace is over all the same.
    """
    scratch, self._scratch = self._scratch, None
    with scratch as folder:
      jax.profiler.stop_trace()
      target = self._folder.joinpath(*_RUNS, f"steps-{self._first}-{self._last}")
      target.mkdir(parents=True, exist_ok=True)
      for file in sorted(pathlib.Path(folder).rglob("*")):
        ending = next((ending for ending in _ENDINGS if file.name.endswith(ending)), None)
        if ending:  # processes of one machine would have the same name
          (target / f"process-{jax.process_index()}{ending}").write_bytes(file.read_bytes())
    return self._folder
