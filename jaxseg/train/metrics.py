"""Where a run's numbers go: `metrics.jsonl`, `speed.jsonl`, TensorBoard, and the terminal."""

import contextlib
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from jaxseg.console import print_line, write_copies
from jaxseg.errors import UserError

METRICS = "metrics.jsonl"
SPEED = "speed.jsonl"
_UNREADABLE = ".unreadable"
_EARLIER = ".earlier"
_SHOWN_WAIT = 0.02  # share of the time


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
    self._kept = [line for line in old if (_step_of(line) or math.inf) <= resume_step]
    broken = [line for line in old[:-1] if _step_of(line) is None]  # the last may be one of a kill
    if broken:
      aside = self._keep_aside(_UNREADABLE, broken)
      print_line(f"{len(broken)} lines of {self._path} cannot be read; they are in {aside}", error=True)
    steps = [line for line in old if _step_of(line)]
    if steps and not resume_step:  # killed before its first save, or its checkpoints are gone
      aside = self._keep_aside(_EARLIER, steps)
      print_line(f"no checkpoint, so training starts at step 0; {len(steps)} earlier lines are in {aside}")
    # A kill in mid-write leaves half a line, and lines of steps that the checkpoint does not have.
    _write_whole(self._path, self._kept)
    self._last = json.loads(self._kept[-1]) if self._kept else {}

  def _keep_aside(self, suffix: str, lines: list[str]) -> epath.Path:
    """Adds `lines` to a file beside the log."""
    aside = self._path.with_name(self._path.name + suffix)
    before = aside.read_text() if aside.exists() else ""
    with _writing(aside):
      aside.write_text(before + "".join(line + "\n" for line in lines))
    return aside

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
    lines = [_as_json(line) for line in self._new]
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
  """The readable lines of a workdir's `metrics.jsonl` (or of its log `name`), in order."""
  text = (epath.Path(directory) / name).read_bytes().decode(errors="replace")
  return [json.loads(line) for line in text.splitlines() if _step_of(line) is not None]


def _step_of(line: str) -> int | None:
  """The step of a line that is an object of numbers; None for any other."""
  try:
    values = json.loads(line)
    numbers = all(v is None or type(v) in (int, float) for v in values.values())
    # What we write is ASCII: a replaced letter stands for bytes that a broken disk or machine has left.
    whole = "\ufffd" not in line and numbers and type(values["step"]) is int and values["step"] > 0
    return values["step"] if whole else None
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    return None


def _as_json(line: Mapping[str, Any]) -> str:
  # JSON has no NaN: a score that is not defined is null.
  finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
  return json.dumps(finite, allow_nan=False)


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


class Board:
  """TensorBoard event files, by tensorboardX's parts (no TensorFlow), written at once."""

  def __init__(self, directory: epath.PathLike, *, resume_step: int, active: bool = True):
    """Events after `resume_step` of an earlier run are hidden by TensorBoard from now on."""
    self._file = None
    if not active:
      return
    from tensorboardX.record_writer import RecordWriter  # slow to import, and no other process needs it

    self._path = epath.Path(directory) / "tensorboard"
    with _writing(self._path):
      self._path.mkdir(parents=True, exist_ok=True)
      name = f"events.out.tfevents.{time.time_ns() // 10**6:013d}.{socket.gethostname()}"
      self._file = RecordWriter(str(self._path / name))
    self._write(file_version="brain.Event:2")
    if resume_step:
      from tensorboardX.proto.event_pb2 import SessionLog

      self._write(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))

  def scalars(self, step: int, scalars: Mapping[str, float], *, prefix: str = "train/") -> None:
    """Raises UserError where the file cannot be written."""
    if self._file is not None:
      from tensorboardX import summary

      for name, value in scalars.items():
        self._write(step=step, summary=summary.scalar(prefix + name, value))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """`image`: uint8 h w 3."""
    if self._file is not None:
      from tensorboardX import summary

      self._write(step=step, summary=summary.image(name, image, dataformats="HWC"))

  def text(self, name: str, text: str) -> None:
    """`text` as it is, in a fixed-width font."""
    if self._file is not None:
      from tensorboardX import summary

      self._write(summary=summary.text(name, f"```\n{text}\n```"))

  def close(self) -> None:
    """Ends the file."""
    if self._file is not None:
      with contextlib.suppress(OSError):
        self._file.close()

  def _write(self, **event: Any) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with _writing(self._path):
      self._file.write(Event(wall_time=time.time(), **event).SerializeToString())
      self._file.flush()


class Progress:
  """A bar with loss, lr, speed and time left on a terminal; a plain line for each window elsewhere."""

  def __init__(self, *, start: int, total: int, active: bool = True):
    self._total, self._active = total, active
    self._bar = None
    if active and sys.stderr is not None and sys.stderr.isatty():
      self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr)

  def window(self, step: int, means: Mapping[str, float], rates: Mapping[str, float]) -> None:
    """Shows that all up to `step` is done.

    Args:
      step: the last of the window.
      means: "loss" of the window, and "lr".
      rates: what `Speed.take` gave, or {}.
    """
    if not self._active:
      return
    left = ""
    if "steps_per_second" in rates:
      left = f", {clock((self._total - step) / rates['steps_per_second'])} left"
    text = f"step {step}/{self._total}  {_numbers(means)}{_speed(rates)}{left}"
    if self._bar is None:
      print_line(text)
      return
    write_copies(text)
    with self._drawing():
      self._bar.set_postfix_str(_numbers(means) + _speed(rates), refresh=False)
      self._bar.update(step - self._bar.n)

  def say(self, text: str) -> None:
    """A line that does not break the bar."""
    if not self._active:
      return
    if self._bar is None:
      print_line(text)
      return
    write_copies(text)
    with self._drawing():
      self._bar.write(text, file=sys.stderr)

  def paused(self) -> None:
    """The time since the last step was not training (an evaluation): the bar's rate leaves it out."""
    if self._bar is not None:
      self._bar.unpause()

  def close(self) -> None:
    """Leaves the bar as it is."""
    if self._bar is not None:
      with self._drawing():
        self._bar.close()

  @contextlib.contextmanager
  def _drawing(self) -> Iterator[None]:
    try:
      yield
    except OSError:  # the terminal was closed: plain lines from now on, which are dropped where need be
      self._bar.disable, self._bar = True, None


@contextlib.contextmanager
def ticking(what: str, *, active: bool = True) -> Iterator[None]:
  """Says that `what` goes on, with the time, while its body runs: "compiling the training step (0:42)".

  On a terminal the line counts seconds; elsewhere it is said at the start, once a minute and at the end.
  """
  if not active:
    yield
    return
  over, since = threading.Event(), time.monotonic()
  terminal = sys.stderr is not None and sys.stderr.isatty()
  if not terminal:
    print_line(what)

  def tick() -> None:
    while not over.wait(1.0 if terminal else 60.0):
      text = f"{what} ({clock(time.monotonic() - since, short=True)})"
      if not terminal:
        print_line(text)
        continue
      with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"\r{text}")
        sys.stderr.flush()

  thread = threading.Thread(target=tick, daemon=True, name="ticking")
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()
    if terminal:
      with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("\r\033[K")
  print_line(f"{what}: done in {clock(time.monotonic() - since, short=True)}")


def _numbers(scalars: Mapping[str, float]) -> str:
  return ", ".join(f"{name} {scalars[name]:.4g}" for name in ("loss", "lr") if name in scalars)


def _speed(rates: Mapping[str, float]) -> str:
  if "steps_per_second" not in rates:
    return ""
  mfu = f", MFU {rates['mfu']:.1%}" if "mfu" in rates else ""
  if rates.get("data_wait", 0.0) >= _SHOWN_WAIT:
    mfu += f", waits for data {rates['data_wait']:.0%}"
  return f", {rates['steps_per_second']:.3g} steps/s, {rates['images_per_second']:.1f} images/s{mfu}"


def clock(seconds: float, *, short: bool = False) -> str:
  """As "1h05m" or "4m07s"; `short` as "1:05:00" or "4:07"."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if short:
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
