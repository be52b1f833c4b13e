"""What looks at a run's steps from beside: the stopwatch, the watchdog, the profiler."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from jaxseg.chips import peak_flops
from jaxseg.macs import count_macs
from jaxseg.train.logging import SPEED, MetricsLog
from jaxseg.train.profile import Profile
from jaxseg.train.speed import Speed
from jaxseg.train.watchdog import Watchdog


class Watch:
  """Is told what the loop does, and sees to the rest; a context for as long as the run goes."""

  def __init__(
    self,
    directory: epath.PathLike,
    config: ml_collections.ConfigDict,
    *,
    model: Any,
    devices: Sequence[jax.Device],
    start: int,
    say: Callable[[str], None],
    active: bool = True,
  ):
    """Starts nothing yet.

    Args:
      directory: the workdir.
      config: of the run.
      model: what is trained.
      devices: on which.
      start: step that the run goes on from.
      say: prints a line.
      active: whether this process writes the log of rates.
    """
    peak = peak_flops(devices)
    # Counting takes a moment, and only a utilisation needs it.
    macs = 0 if peak is None else count_macs(model, tuple(config.data.crop_size))
    self._speed = Speed(batch_size=config.batch_size, macs=macs, peak=peak)
    self._watchdog = Watchdog(directory, seconds=_timeout(config))
    self._profile = Profile(directory, tuple(config.get("profile_steps", ())), start=start)
    self._log = MetricsLog(directory, resume_step=start, active=active, name=SPEED)
    self._start, self._say, self._result = start, say, None

  def __enter__(self) -> "Watch":
    self._stack = contextlib.ExitStack()
    self._stack.enter_context(self._profile)
    self._stack.enter_context(self._watchdog)
    return self

  def __exit__(self, *error: Any) -> None:
    self._stack.__exit__(*error)

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Around the dispatch of a step."""
    if self._profile.begins(step):
      jax.block_until_ready(self._result)
      self._speed.finished(step - 1)
      self._speed.end()
      self._profile.start()
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def dispatched(self, step: int, result: jax.Array) -> None:
    """`step` is under way, and finished when `result` is there."""
    self._result = result
    self._watchdog.dispatched(step, result)
    if step == self._start + 1:  # it is compiled now, and the clocks begin
      jax.block_until_ready(result)
      self._watchdog.started(step)
      if not self._profile.tracing:
        self._speed.begin(step)
    if self._profile.ends(step):
      with self.aside(step):
        jax.block_until_ready(result)
        try:
          folder = self._profile.stop()
          self._say(f"step {step}: profile in {folder}; tensorboard --logdir={folder} shows it")
        except (OSError, RuntimeError) as error:  # the run is worth more
          self._say(f"step {step}: the profile could not be written: {error}")

  @contextlib.contextmanager
  def aside(self, step: int) -> Iterator[None]:
    """Around what is no training, such as an evaluation, when `step` and all before are finished."""
    self._speed.end()
    self._log.flush(force=True)
    with self._watchdog.aside():
      yield
    if not self._profile.tracing:
      self._speed.begin(step)

  def finished(self, step: int) -> None:
    """Everything up to `step` is known to be finished."""
    self._speed.finished(step)

  def rates(self, step: int) -> dict[str, float | int]:
    """Rates since the last call, see `Speed.take`; they are in the log as `step`'s when this returns."""
    rates = self._speed.take()
    if rates:
      self._log.write(step, rates)
      self._log.flush()
    return rates


def _timeout(config: ml_collections.ConfigDict) -> float:
  return float(config.get("hosts", {}).get("step_timeout_seconds", 0.0))
