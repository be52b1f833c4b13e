"""The NaN guard: steps in flight, with the images that each one saw.

Looking at a step's loss waits for the device, so losses are read in windows; the
window keeps each step's example ids, and so the guard still names the right ones.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax


class TrainingStopped(RuntimeError):
  """Training cannot go on; the message names the step, the images and where to go back to."""


@dataclasses.dataclass(frozen=True)
class _Step:
  step: int
  ids: tuple[str, ...]
  scalars: dict[str, jax.Array]


class Guard:
  """A first-in first-out window of dispatched steps."""

  def __init__(self):
    self._window: collections.deque[_Step] = collections.deque()
    self.finished = 0  # the last step that was waited for

  def push(self, step: int, ids: Sequence[str], scalars: dict[str, jax.Array]) -> None:
    """Adds a dispatched step; `scalars` may still be on their way."""
    self._window.append(_Step(step, tuple(str(i) for i in ids), scalars))

  def drain(self, *, keep: int, last_good: Callable[[], str]) -> Iterator[tuple[int, dict[str, float]]]:
    """Waits for all but the last `keep` steps and yields their (step, scalars), oldest first.

    Args:
      last_good: what to go back to, for the message.

    Raises:
      TrainingStopped: a scalar of the next step is NaN or infinite; earlier steps were yielded before.
    """
    ready = [self._window.popleft() for _ in range(max(0, len(self._window) - keep))]
    fetched = jax.device_get([entry.scalars for entry in ready])
    self.finished = ready[-1].step if ready else self.finished
    for entry, values in zip(ready, fetched, strict=True):
      scalars = {name: float(value) for name, value in values.items()}
      finite = scalars.pop("finite", 1.0)
      bad = [f"{name} is {value}" for name, value in scalars.items() if not math.isfinite(value)]
      if bad or not finite:
        raise TrainingStopped(
          f"{', '.join(bad) or 'a gradient is not finite'} at step {entry.step}, on the images"
          f" {', '.join(entry.ids)}; last good checkpoint: {last_good()}. Lower"
          " --config.optimizer.learning_rate, set --config.optimizer.grad_clip, or look at these images"
        )
      parts = [name for name in scalars if name.startswith("loss/")]
      if len(parts) == 1:  # the only map's loss is the loss, before its weight
        del scalars[parts[0]]
      yield entry.step, scalars
