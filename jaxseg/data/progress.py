"""How far a long preparation is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

import tqdm

_EVERY = 10.0  # seconds between lines


class Progress:
  """Counts to `total`; used as a context manager, so that the bar is closed."""

  def __init__(self, total: int):
    self.total = total
    self.done = 0
    self._out = sys.stdout  # as it is now: TFDS's own words are thrown away later
    self._start = self._last = time.monotonic()
    on_terminal = sys.stderr.isatty()
    self._bar = tqdm.tqdm(total=total, unit=" examples", file=sys.stderr) if on_terminal else None

  def advance(self) -> None:
    """One more is done."""
    self.done += 1
    if self._bar is not None:
      self._bar.update()
      return
    now = time.monotonic()
    if now - self._last >= _EVERY:
      self._last = now
      left = (now - self._start) / self.done * (self.total - self.done)
      line = f"  {self.done:,} of {self.total:,} done, about {_duration(left)} left"
      print(line, file=self._out, flush=True)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    if self._bar is not None:
      self._bar.close()


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
