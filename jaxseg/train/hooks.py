"""What happens beside the steps of a run: logs, rates, profile, saves, evaluations, hang detection.

A hook is told what the loop does (`Hook`), and decides after which steps it wants all steps finished and
the state in its hands.
"""

import contextlib
import faulthandler
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from jaxseg.checkpoint import Checkpoints
from jaxseg.chips import peak_flops
from jaxseg.evaluation.report import Report as SegmentationReport
from jaxseg.macs import count_macs
from jaxseg.train import distributed, results
from jaxseg.train.distributed import Preempted, StopRequest
from jaxseg.train.experiment import Report, headline
from jaxseg.train.metrics import SPEED, Board, MetricsLog, Progress, read_metrics
from jaxseg.train.speed import Profile, Speed
from jaxseg.train.step import TrainState
from jaxseg.train.trackers import Tracker, Trackers

Line = tuple[int, dict[str, float]]


class Hook:
  """What the loop calls, in this order for each step; every method may be left as it is.

  Attributes:
    over: True ends the run before its last step.
  """

  over = False

  def due(self, step: int) -> bool:
    """Whether `between` is to be called after `step` (0 or the restored step too); asked once for each."""
    return False

  def paused(self) -> None:
    """All steps are finished, and what follows is not training."""

  def between(self, step: int, state: TrainState) -> None:
    """Every step up to `step` is finished and in the logs; the state may be read until this returns."""

  def before_step(self, step: int) -> None:
    """`step` is about to be dispatched."""

  def dispatched(self, step: int, result: jax.Array) -> None:
    """`step` is under way; `result` is there when it is finished."""

  def finished(self, step: int) -> None:
    """`step` and all before are known to be finished."""

  def window(self, lines: Sequence[Line]) -> None:
    """The scalars of the steps of a window, all finite, oldest first."""

  def close(self) -> None:
    """The run is over, in whatever way."""


class Timing(Hook):
  """Rates of finished steps, and the profiler's trace of `config.profile_steps`."""

  def __init__(
    self,
    directory: epath.PathLike,
    config: ml_collections.ConfigDict,
    *,
    model: Any,
    devices: Sequence[jax.Device],
    start: int,
    waited: Callable[[], float],
    say: Callable[[str], None],
  ):
    """Starts nothing yet.

    Args:
      directory: the workdir.
      config: of the run.
      model: what is trained.
      devices: on which.
      start: step that the run goes on from.
      waited: seconds that steps waited for data, since the start of the program.
      say: prints a line.
    """
    peak = peak_flops(devices)
    # Counting takes a moment, and only a utilisation needs it.
    macs = 0 if peak is None else count_macs(model, tuple(config.data.crop_size))
    self._speed = Speed(batch_size=config.batch_size, macs=macs, peak=peak)
    self._profile = Profile(directory, tuple(config.get("profile_steps", ())), start=start)
    self._first, self._waited, self._say = start + 1, waited, say
    self._seen_wait, self._paused, self._result = 0.0, False, None

  def paused(self) -> None:
    self._speed.end()
    self._paused = True

  def before_step(self, step: int) -> None:
    if self._profile.begins(step):
      jax.block_until_ready(self._result)
      self._speed.finished(step - 1)
      self._speed.end()
      self._profile.start()
    elif self._paused and step > self._first and not self._profile.tracing:
      self._speed.begin(step - 1)
    self._paused = False

  def dispatched(self, step: int, result: jax.Array) -> None:
    self._result = result
    if not self._profile.ends(step):
      return
    jax.block_until_ready(result)
    try:
      folder = self._profile.stop()
      self._say(f"step {step}: profile in {folder}; tensorboard --logdir={folder} shows it")
    except (OSError, RuntimeError) as error:  # it must not end the run
      self._say(f"step {step}: the profile could not be written: {error}")
    self._paused = True

  def finished(self, step: int) -> None:
    if step == self._first and not self._profile.tracing:
      self._speed.begin(step)  # the first step also loads the program, and is not counted
      self._seen_wait = self._waited()
    self._speed.finished(step)

  def take(self) -> dict[str, float | int]:
    """Rates since the last call, see `Speed.take`."""
    waited = self._waited()
    rates = self._speed.take(waited=waited - self._seen_wait)
    self._seen_wait = waited
    return rates

  def close(self) -> None:
    self._profile.__exit__()


class Metrics(Hook):
  """`metrics.jsonl`, `speed.jsonl`, TensorBoard, other trackers and the terminal."""

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    start: int,
    rates: Callable[[], Mapping[str, float]],
    learning_rates: Sequence[float],
    progress: Progress,
    trackers: Mapping[str, Tracker] | None = None,
  ):
    active = jax.process_index() == 0
    self.log = MetricsLog(directory, resume_step=start, active=active)
    self.board = Trackers(Board(directory, resume_step=start, active=active), trackers or {})
    self.progress = progress
    self._speed = MetricsLog(directory, resume_step=start, active=active, name=SPEED)
    self._rates, self._learning_rates = rates, learning_rates

  def window(self, lines: Sequence[Line]) -> None:
    step = lines[-1][0]
    for number, scalars in lines:
      self.log.write(
        number, {"loss": scalars["loss"], "lr": float(self._learning_rates[number - 1]), **scalars}
      )
    self.log.flush()
    means = {key: sum(scalars[key] for _, scalars in lines) / len(lines) for key in lines[0][1]}
    means = {"loss": means.pop("loss"), "lr": float(self._learning_rates[step - 1]), **means}
    rates = self._rates()
    self.board.scalars(step, means)
    self.board.scalars(step, rates, prefix="speed/")
    if rates:
      self._speed.write(step, rates)
      self._speed.flush()
    self.progress.window(step, means, rates)

  def paused(self) -> None:
    # Before a save: a checkpoint never knows of a step that the log does not.
    self.log.flush(force=True)
    self._speed.flush(force=True)
    self.progress.paused()

  def close(self) -> None:
    self.progress.close()
    self.board.close()
    self.log.flush(force=True)
    self._speed.flush(force=True)


class Saving(Hook):
  """Checkpoints every so many steps, at the end, before an evaluation, and when the run is told to go."""

  def __init__(
    self,
    checkpoints: Checkpoints,
    config: ml_collections.ConfigDict,
    *,
    start: int,
    preemption: StopRequest | None = None,
  ):
    self._checkpoints, self._start, self._preemption = checkpoints, start, preemption
    self._total = config.total_steps
    self._every = (config.checkpoint.every_steps, config.eval.every_steps)
    self._going = False

  def due(self, step: int) -> bool:
    self._going = self._preemption is not None and self._preemption.reached(step)
    regular = step == self._total or any(_is_due(step, every) for every in self._every)
    return self._going or (regular and step > self._start)

  def between(self, step: int, state: TrainState) -> None:
    if step > self._start:
      self._checkpoints.save(step, state)
    if self._going:
      self._checkpoints.wait()
      raise Preempted(preempted_at(step))

  def window(self, lines: Sequence[Line]) -> None:
    self._checkpoints.check()


def preempted_at(step: int) -> str:
  """What is said when a run is told to go, with all up to `step` saved."""
  done = f"at step {step}; saved" if step else "before the first step"
  return f"preempted {done}; the same command goes on"


class Evaluation(Hook):
  """Scores every so many steps and at the end; keeps the best weights in `best/`; stops early if asked to."""

  def __init__(
    self,
    directory: epath.PathLike,
    config: ml_collections.ConfigDict,
    evaluator: Callable[..., Report],
    metrics: Metrics,
    checkpoints: Checkpoints,
    *,
    start: int,
    save_best: Callable[[int, str, float, TrainState], None] | None,
    preemption: StopRequest | None = None,
  ):
    self.report: Report | None = None
    self._directory, self._config, self._evaluator = epath.Path(directory), config, evaluator
    self._metrics, self._checkpoints, self._start = metrics, checkpoints, start
    self._save_best, self._preemption = save_best, preemption
    self._patience = config.get("early_stopping", {}).get("patience", 0)
    self._scores: list[float] = []  # of all evaluations so far, of earlier starts too
    lines = read_metrics(directory) if start else []
    self._owes = bool(lines) and not self._read_scores(lines)
    # Also where the log has lost the line of its step: a worse step does not take its place.
    self._kept = results.score_of_best(directory) if start else float("-inf")
    self.over = self._has_stalled()

  def _read_scores(self, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Takes the scores of earlier evaluations from the log; whether the last step has one."""
    found = [next((line[name] for name in results.HEADLINES if name in line), None) for line in lines]
    self._scores = [score for score in found if score is not None]
    return any(name in lines[-1] for name in results.HEADLINES)

  def due(self, step: int) -> bool:
    regular = step == self._config.total_steps or _is_due(step, self._config.eval.every_steps)
    # A run that was stopped in an evaluation has the step, and owes its scores.
    return regular and step > 0 and not self.over and (step > self._start or self._owes)

  def between(self, step: int, state: TrainState) -> None:
    def progress(_: int) -> None:
      alone = self._preemption is not None and not distributed.is_distributed()
      if alone and self._preemption.reached(step):
        self._checkpoints.wait()
        raise Preempted(preempted_at(step))

    log, board = self._metrics.log, self._metrics.board
    # The last one has the published rule; those before may pad images to a few sizes (config.eval.canvases).
    exact = step == self._config.total_steps
    self.report = report = self._evaluator(state.eval_variables, exact=exact, progress=progress)
    scores = report.scalars()
    name, score = next(iter(scores.items()))
    self._metrics.progress.say(f"step {step}: {headline(report)} on {self._config.data.eval_split}")
    if self._save_best is not None and not score <= max([self._kept, *self._scores]):
      self._save_best(step, name, score, state)
    self._scores.append(score)
    log.write(step, scores)
    board.scalars(step, scores, prefix="eval/")
    every = self._config.log.get("panel_every_steps", 0)
    if _is_due(step, every) or (step == self._config.total_steps and every):
      board.image(step, "eval/predictions", self._evaluator.panel(state.eval_variables))
    log.flush(force=True)
    self.over = self._has_stalled()
    self._publish(step, state, last=exact or self.over, drawn=_is_due(step, every))
    self._metrics.progress.paused()
    if self.over:
      self._metrics.progress.say(
        f"step {step}: {name} has not risen for {self._patience} evaluations; the run ends"
        " (config.early_stopping.patience)"
      )

  def _publish(self, step: int, state: TrainState, *, last: bool, drawn: bool) -> None:
    """Pictures for TensorBoard, and at the end the report, of a segmentation model."""
    if not isinstance(self.report, SegmentationReport) or not (last or drawn):
      return
    results.draw(self._metrics.board, step, self.report, self._evaluator.info.classes)
    if last:
      said = results.write_report(
        self._directory,
        self.report,
        self._evaluator,
        state.eval_variables,
        config=self._config,
        step=step,
      )
      self._metrics.progress.say(f"step {step}: {said}")

  def _has_stalled(self) -> bool:
    """Whether the last `patience` evaluations are no better than the best before them."""
    if not self._patience or len(self._scores) <= self._patience:
      return False
    before, last = self._scores[: -self._patience], self._scores[-self._patience :]
    return max(last) <= max(before)


class HangDetector(Hook):
  """Ends the process with the stacks of all threads when no step finishes for `seconds`. For programs.

  From the first finished step on, and not in saves and evaluations. Exit code 1: the same command goes on
  from the last checkpoint.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds

  def finished(self, step: int) -> None:
    if self._seconds:
      with contextlib.suppress(RuntimeError, ValueError, OSError, AttributeError):  # no stderr
        faulthandler.dump_traceback_later(self._seconds, exit=True)

  def paused(self) -> None:
    faulthandler.cancel_dump_traceback_later()

  def close(self) -> None:
    faulthandler.cancel_dump_traceback_later()


def keep_best(
  directory: epath.PathLike, record: Mapping[str, Any]
) -> Callable[[int, str, float, TrainState], None]:
  """A function (step, name of the score, score, state) that writes `best/`; every process calls it."""
  gather: list[Any] = []

  def save(step: int, name: str, score: float, state: TrainState) -> None:
    variables = results.on_host(state.eval_variables, gather)
    if jax.process_index() == 0:
      results.write_best(directory, record, variables, {"step": step, name: score})

  return save


def _is_due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
