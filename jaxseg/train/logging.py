"""Where a run's numbers go: `metrics.jsonl`, `speed.jsonl`, TensorBoard, and the terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from jaxseg.errors import UserError

METRICS = "metrics.jsonl"
SPEED = "speed.jsonl"


def say(text: str, *, error: bool = False) -> None:
  """Prints a line at once, on stderr for an `error`. A run is worth more than its lines.

  A pipe whose reader has left (`| head`), a full disk or a closed terminal ends nothing: what follows is
  printed nowhere.
  """
  stream = sys.stderr if error else sys.stdout
  if stream is None:
    return
  try:
    print(text, file=stream, flush=True)
  except OSError:
    # The descriptor, not the object: the interpreter flushes what is left at its end, and would fail again.
    with contextlib.suppress(OSError, ValueError):
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, stream.fileno())
      os.close(nowhere)
  except ValueError:  # closed, or letters that the terminal has not
    pass


class MetricsLog:
  """`metrics.jsonl`: one line a step, `{"step": 7, "loss": ..., "lr": ...}`, with its scores if evaluated.

  A float is written so that reading it back gives the same bits. On a file system that cannot append
  (`gs://`) the file is rewritten at every forced flush, and elsewhere when scores come to a line that is in
  it.

  Its lines follow from config, data and seed alone: a resumed run's are equal to the bit. What depends on
  the machine, steps and images a second, is in a file of its own, `SPEED`.
  """

  def __init__(
    self, directory: epath.PathLike, *, resume_step: int, active: bool = True, name: str = METRICS
  ):
    """Opens the log `name` and cuts every line after `resume_step`; only an `active` log writes."""
    self._path = epath.Path(directory) / name
    self._active = active
    self._new: list[dict[str, Any]] = []
    self._last: dict[str, Any] = {}  # the last line of the file
    self._amended = False  # whether the first new line takes its place
    if not active:
      return
    old = self._path.read_bytes().decode(errors="replace").splitlines() if self._path.exists() else []
    self._kept = [line for line in old if _step_of(line) <= resume_step]
    # A kill in mid-write leaves half a line, and lines of steps that the checkpoint does not have.
    _write_whole(self._path, self._kept)
    self._last = json.loads(self._kept[-1]) if self._kept else {}

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Adds a line, or to the step's line where that is the last one; `flush` brings it to the disk."""
    if self._active:
      if not self._new and self._last.get("step") == step:
        self._new, self._amended = [self._last], True
      elif not self._new or self._new[-1]["step"] != step:
        self._new.append({"step": step})
      self._new[-1].update(scalars)

  def flush(self, *, force: bool = False) -> None:
    """All lines written so far are in the file when this returns; in a bucket only with `force`.

    There every flush writes the whole file, so it is for the moments that a resumed run may start from.
    """
    remote = "://" in str(self._path)
    if not self._new or (remote and not force):
      return
    lines = [json.dumps(line) for line in self._new]
    self._last, self._new = self._new[-1], []
    if not remote and not self._amended:
      with _writing(self._path), open(self._path, "a") as file:
        file.write("".join(line + "\n" for line in lines))
      return
    kept = self._kept if remote else self._path.read_text().splitlines()
    self._kept = kept[: len(kept) - self._amended] + lines
    self._amended = False
    _write_whole(self._path, self._kept)


def read_metrics(directory: epath.PathLike, *, name: str = METRICS) -> list[dict[str, Any]]:
  """The lines of a workdir's `metrics.jsonl` (or of its log `name`), in order."""
  text = (epath.Path(directory) / name).read_text()
  return [json.loads(line) for line in text.splitlines()]


def _step_of(line: str) -> float:
  try:
    # What we write is ASCII: a replaced letter stands for bytes that a broken disk or machine has left.
    return float("inf") if "\ufffd" in line else float(json.loads(line)["step"])
  except (ValueError, KeyError, TypeError):
    return float("inf")


def _write_whole(path: epath.Path, lines: list[str]) -> None:
  # Written beside and renamed: a kill never leaves a log shorter than the checkpoint.
  part = path.with_name(path.name + ".part")
  with _writing(path):
    part.write_text("".join(line + "\n" for line in lines))
    part.replace(path)


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:
    # A bucket's client raises what it likes.
    if isinstance(error, OSError) or "://" in str(path):
      raise UserError(_unwritable(path, error)) from error
    raise


def _unwritable(path: epath.Path, error: Exception) -> str:
  reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return (
    f"{str(path)!r} cannot be written ({reason}); make room or choose another --workdir, and"
    " the same command goes on from the last checkpoint"
  )


class _Kept:
  """A file of tensorboardX's writing thread: what goes wrong is kept for the run, and the thread lives on.

  It would end otherwise, and the run wait for ever for a place in its queue.
  """

  def __init__(self, file: Any):
    self._file = file
    self.error: OSError | None = None

  def write(self, data: bytes) -> None:
    self._try(self._file.write, data)

  def flush(self) -> None:
    self._try(self._file.flush)

  def close(self) -> None:
    self._try(self._file.close)

  def _try(self, action: Callable[..., Any], *args: bytes) -> None:
    try:
      action(*args)
    except OSError as error:
      self.error = error


class Board:
  """TensorBoard event files, through tensorboardX (no TensorFlow)."""

  def __init__(self, directory: epath.PathLike, *, resume_step: int, active: bool = True):
    """Events after `resume_step` of an earlier run are hidden by TensorBoard from now on."""
    self._writer = None
    if active:
      from tensorboardX import SummaryWriter  # slow to import, and no other process needs it

      purge = resume_step + 1 if resume_step else None
      self._path = epath.Path(directory) / "tensorboard"
      with _writing(self._path):
        self._writer = SummaryWriter(str(self._path), purge_step=purge)
      events = self._writer.file_writer.event_writer._ev_writer
      events._py_recordio_writer = self._file = _Kept(events._py_recordio_writer)

  def scalars(self, step: int, scalars: Mapping[str, float], *, prefix: str = "train/") -> None:
    """Raises ValueError when something written before did not reach the disk."""
    if self._writer is not None:
      if self._file.error is not None:
        raise UserError(_unwritable(self._path, self._file.error))
      for name, value in scalars.items():
        self._writer.add_scalar(prefix + name, value, step)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """`image`: uint8 h w 3."""
    if self._writer is not None:
      self._writer.add_image(name, image, step, dataformats="HWC")

  def text(self, name: str, text: str) -> None:
    if self._writer is not None:
      self._writer.add_text(name, f"```\n{text}\n```")

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


class Progress:
  """A bar with loss, lr, speed and time left on a terminal; a plain line now and then elsewhere."""

  def __init__(self, *, start: int, total: int, log_every: int, active: bool = True):
    self._total, self._every = total, log_every
    self._active = active
    self._rates: Mapping[str, float] = {}
    self._bar = None
    if active and sys.stderr.isatty():
      self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr)

  def step(self, step: int, scalars: Mapping[str, float], *, rates: Mapping[str, float]) -> None:
    """Shows that `step` is done; off a terminal a line every `log_every` steps.

    Args:
      step: that is done.
      scalars: of it.
      rates: what `Speed.take` gave, or {}: the last ones stay.
    """
    if not self._active:
      return
    self._rates = rates or self._rates
    if self._bar is not None:
      with self._drawing():
        self._bar.set_postfix_str(_numbers(scalars) + _speed(self._rates), refresh=False)
        self._bar.update(step - self._bar.n)
    elif step % self._every == 0 or step == self._total:
      left = ""
      if self._rates:
        left = f", {_clock((self._total - step) / self._rates['steps_per_second'])} left"
      say(f"step {step}/{self._total}  {_numbers(scalars)}{_speed(self._rates)}{left}")

  def say(self, text: str) -> None:
    """A line that does not break the bar."""
    if self._active:
      if self._bar is not None:
        with self._drawing():
          self._bar.write(text, file=sys.stderr)
      else:
        say(text)

  def pause(self) -> None:
    """The time since the last step was not training (an evaluation): the bar's rate leaves it out."""
    if self._bar is not None:
      self._bar.unpause()

  def close(self) -> None:
    if self._bar is not None:
      with self._drawing():
        self._bar.close()

  @contextlib.contextmanager
  def _drawing(self) -> Iterator[None]:
    try:
      yield
    except OSError:  # the terminal was closed: plain lines from now on, which `say` drops where need be
      self._bar.disable, self._bar = True, None


def _numbers(scalars: Mapping[str, float]) -> str:
  return ", ".join(f"{name} {scalars[name]:.4g}" for name in ("loss", "lr") if name in scalars)


def _speed(rates: Mapping[str, float]) -> str:
  if not rates:
    return ""
  mfu = f", MFU {rates['mfu']:.1%}" if "mfu" in rates else ""
  return f", {rates['steps_per_second']:.3g} steps/s, {rates['images_per_second']:.1f} images/s{mfu}"


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
