"""How fast a run is: steps and images a second, and the model's share of the chips' published rate.

Model FLOP utilisation counts what the model needs, not what the compiled program does: 2 FLOPs for each
multiply-add of the forward pass (`jaxseg.macs`), and three times that for a training step, whose backward
pass is two forward passes' worth; over the published dense bfloat16 rate of all chips, whatever the
precision.

`config.profile_steps=(first, last)` asks for a profiler's trace of some steps. Each process leaves it in
`WORKDIR/profile/plugins/profile/steps-FIRST-LAST/`, where TensorBoard and xprof look
(`--logdir=WORKDIR/profile`); the file `*.trace.json.gz` opens in https://ui.perfetto.dev.
"""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from jaxseg.chips import chip_of, count_chips, peak_flops

_FLOPS_A_MAC = 2
_PASSES = 3  # forward, and the gradients of inputs and of weights


FOLDER = "profile"
_RUNS = ("plugins", "profile")
_ENDINGS = (".xplane.pb", ".trace.json.gz")


class Speed:
  """A stopwatch for finished steps, which stands still while the run does something else."""

  def __init__(self, *, batch_size: int, macs: float | int, peak: float | int | None):
    """Starts nothing.

    Args:
      batch_size: images a step, over all devices.
      macs: multiply-adds of the model's forward pass, for one image.
      peak: FLOP/s of all devices together; None where it is not known, and then there is no MFU.
    """
    self._batch, self._peak = batch_size, peak
    self._flops = _FLOPS_A_MAC * _PASSES * macs
    self._at, self._since = 0, None
    self._steps, self._seconds = 0, 0.0

  def begin(self, step: int) -> None:
    """Everything up to `step` is finished, and the next one is about to be dispatched."""
    self._at, self._since = step, time.perf_counter()

  def finished(self, step: int) -> None:
    """Everything up to `step` is finished."""
    if self._since is not None and step > self._at:
      now = time.perf_counter()
      self._steps, self._seconds = self._steps + step - self._at, self._seconds + now - self._since
      self._at, self._since = step, now

  def end(self) -> None:
    """What follows is not training; `begin` goes on."""
    self._since = None

  def take(self, *, waited: float = 0.0) -> dict[str, float | int]:
    """Rates over the steps since the last call; {} where there were none.

    Args:
      waited: seconds in which the steps waited for data since the last call.

    Returns:
      steps_per_second, images_per_second, mfu in [0, 1] where the peak is known, data_wait: the share of the
      time that was spent waiting for data, and over_steps: of how many steps.
    """
    steps, seconds = self._steps, max(self._seconds, 1e-9)
    self._steps, self._seconds = 0, 0.0
    if not steps:
      return {}
    images = steps * self._batch / seconds
    rates = {"steps_per_second": steps / seconds, "images_per_second": images}
    if self._peak:
      rates["mfu"] = images * self._flops / self._peak
    return rates | {"data_wait": min(waited / seconds, 1.0), "over_steps": steps}


def card_row(devices: Sequence[Any]) -> str:
  """What the recipe card says of the rates that the log will have."""
  kind = devices[0].device_kind
  chip, peak = chip_of(kind), peak_flops(devices)
  if chip is None or peak is None:
    return f"steps and images a second; no MFU, as the published rate of {kind!r} is not known"
  return (
    f"steps and images a second; MFU: {_PASSES} x {_FLOPS_A_MAC} x MACs an image, of {peak / 1e12:g} TFLOP/s"
    f" ({count_chips(devices)} x {chip.name}, bfloat16)"
  )


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
