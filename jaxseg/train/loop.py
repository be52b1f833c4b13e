"""The training loop: a `for` over batches and steps, with hooks.

What a step does is in `step.py`, what is learned from which data in a task (`tasks.py`), what happens beside
the steps in `hooks.py`; another method passes another loss, step, task or hook and never copies this file.
The position in the data is the global step and nothing else, and the random key is folded with it, so a
resumed run takes the very steps that the stopped one would have.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from jaxseg import console
from jaxseg.checkpoint import Checkpoints
from jaxseg.config.card import recipe_card
from jaxseg.config.record import CHECKPOINTS, CONFIG_FILE, make_record
from jaxseg.config.record import read as read_record
from jaxseg.data.feed import prefetch_to_devices
from jaxseg.train import distributed, hooks, results, workdir
from jaxseg.train.distributed import RunEnded, StopRequest
from jaxseg.train.experiment import Experiment, Report, build_experiment
from jaxseg.train.hooks import Hook
from jaxseg.train.metrics import Progress, ticking
from jaxseg.train.optimizer import frozen_paths, parameter_groups
from jaxseg.train.speed import card_row
from jaxseg.train.step import Step, TrainState
from jaxseg.train.trackers import open_trackers

LOG = "log.txt"
_LINEAGE = ("licence", "lineage")
# Steps that the devices may have before them beside the one that they work on.
STEPS_IN_FLIGHT = 1


class TrainingStopped(RunEnded):
  """Training cannot go on; the message names the step, the images and where to go back to."""

  exit_code = console.BAD_INPUT  # the same command would come to the same step: something has to change


class NotFinite(Exception):
  """A step whose loss, gradients or parameters are not finite.

  Attributes:
    step: its number.
    ids: this process's images of its batch.
    what: which value.
  """

  def __init__(self, step: int, ids: Sequence[str], what: str):
    super().__init__(f"{what} at step {step}")
    self.step, self.ids, self.what = step, ids, what


def run_steps(
  step_fn: Step | None,
  state: Any,
  key: jax.Array | None,
  feed: Iterator[tuple[list[str], Any]],
  run_hooks: Sequence[Hook],
  *,
  start: int,
  total: int,
  every: int,
  in_flight: int = STEPS_IN_FLIGHT,
) -> Any:
  """Steps `start` + 1 to `total`; before step n + `in_flight` + 1 is dispatched, n is finished and looked at.

  Args:
    step_fn: compiled; donates its state. None, like the key, where no step is left.
    state: after step `start`.
    key: of the run.
    feed: (names of this process's examples, batch on the devices) from step `start` + 1 on.
    run_hooks: told what happens, in this order.
    start: steps made before.
    total: the last step.
    every: steps of a window, whose scalars come to the host together.
    in_flight: steps beside the oldest unfinished one.

  Raises:
    NotFinite: the first step that is not; earlier ones are in the logs.
  """
  window = _Window(run_hooks, every, in_flight)
  for step in range(start, total + 1):
    if due := [hook for hook in run_hooks if hook.due(step)]:
      window.finish_all()
      for hook in due:
        hook.between(step, state)
    if step == total or any(hook.over for hook in run_hooks):
      break
    ids, batch = next(feed)
    for hook in run_hooks:
      hook.before_step(step + 1)
    trace = jax.profiler.StepTraceAnnotation("train", step_num=step + 1)
    with trace, jax.transfer_guard("disallow"):
      state, scalars = step_fn(state, batch, key)
    window.dispatched(step + 1, ids, scalars)
  window.finish_all()
  return state


@dataclasses.dataclass(frozen=True)
class _Dispatched:
  step: int
  ids: Sequence[str]
  scalars: dict[str, jax.Array]


class _Window:
  """Dispatched steps: which are unfinished, and which are finished and not yet looked at."""

  def __init__(self, run_hooks: Sequence[Hook], every: int, in_flight: int):
    self._hooks, self._every, self._in_flight = run_hooks, every, in_flight
    self._unfinished: collections.deque[_Dispatched] = collections.deque()
    self._finished: list[_Dispatched] = []

  def dispatched(self, step: int, ids: Sequence[str], scalars: dict[str, jax.Array]) -> None:
    self._unfinished.append(_Dispatched(step, ids, scalars))
    for hook in self._hooks:
      hook.dispatched(step, scalars["loss"])
    self._finish(keep=self._in_flight)

  def finish_all(self) -> None:
    """Waits for every step, logs them, and tells the hooks that training pauses."""
    self._finish(keep=0)
    self._look()
    for hook in self._hooks:
      hook.paused()

  def _finish(self, *, keep: int) -> None:
    while len(self._unfinished) > keep:
      done = self._unfinished.popleft()
      jax.block_until_ready(done.scalars)
      self._finished.append(done)
      for hook in self._hooks:
        hook.finished(done.step)
      if done.step % self._every == 0:
        self._look()

  def _look(self) -> None:
    """Brings the scalars of the finished steps to the host, in one transfer, and gives them to the hooks."""
    done, self._finished = self._finished, []
    lines: list[hooks.Line] = []
    failure = None
    for entry, values in zip(done, jax.device_get([entry.scalars for entry in done]), strict=True):
      scalars = {name: float(value) for name, value in values.items()}
      what = _not_finite(scalars)
      if what:
        failure = NotFinite(entry.step, entry.ids, what)
        break
      parts = [name for name in scalars if name.startswith("loss/")]
      if len(parts) == 1:  # the only map's loss is the loss, before its weight
        del scalars[parts[0]]
      lines.append((entry.step, scalars))
    if lines:
      for hook in self._hooks:
        hook.window(lines)
    if failure is not None:
      raise failure


def _not_finite(scalars: dict[str, float]) -> str:
  """What is not finite in a step's scalars, in words; takes the flags out of them."""
  gradients, params = scalars.pop("finite", 1.0), scalars.pop("params_finite", 1.0)
  wrong = [f"{name} is {value}" for name, value in scalars.items() if not math.isfinite(value)]
  if wrong:
    return ", ".join(wrong)
  if not gradients:
    return "a gradient is not finite"
  return "" if params else "a parameter is not finite after the update"


def train(
  config: ml_collections.ConfigDict,
  directory: epath.PathLike,
  *,
  preemption: StopRequest | None = None,
  end_if_hung: bool = False,
  in_flight: int = STEPS_IN_FLIGHT,
) -> Report | None:
  """Trains until `config.total_steps`, from scratch or from where an earlier run in `directory` got.

  Args:
    config: see `configs/common.py`.
    directory: the workdir.
    preemption: asked at each step whether to save and go; None never goes. The program installs it.
    end_if_hung: end the process when no step finishes for `config.hosts.step_timeout_seconds`; for programs.
    in_flight: steps that the devices may have before them.

  Returns:
    The report of the last evaluation that this call made; None when the run was complete already.

  Raises:
    UserError: a config, data set or workdir that cannot run, or a workdir that another run owns.
    TrainingStopped: a loss, gradient or parameter that is not finite.
    Preempted: told to go; what was done is saved.
  """
  experiment = build_experiment(config)
  record = make_record(
    config,
    num_classes=experiment.num_classes,
    classes=experiment.info.classes,
    palette=experiment.info.palette,
  )
  record["data"] = experiment.data_state
  with contextlib.ExitStack() as stack:
    before = _open_workdir(directory, record, stack)
    checkpoints = Checkpoints(epath.Path(directory) / CHECKPOINTS, keep_last=config.checkpoint.keep_last)
    alone = not distributed.is_distributed()
    # After an error in one of several processes the wait for the others would never end.
    stack.push(lambda kind, *_: checkpoints.close() if kind is None or alone else None)
    every = workdir.save_period(before or record)
    workdir.together(lambda: workdir.check_checkpoints(directory, steps=checkpoints.steps(), every=every))
    restored = experiment.restore(checkpoints)
    state, report = (restored[0], None) if restored else experiment.init()
    start = restored[1] if restored else 0
    # The licence and the lineage of what the run began from go with its weights.
    record |= report.facts() if report else {key: before[key] for key in _LINEAGE if key in (before or {})}
    if distributed.is_first_process():  # not before: a config that cannot go on is not the workdir's
      if before is not None and any(before.get(key) != record[key] for key in ("config", "data")):
        workdir.say_changes(workdir.compare(directory, before, record))
        workdir.keep_history(directory, before, step=start)
      workdir.update(directory, record)
    return _train(
      experiment,
      directory,
      record,
      checkpoints,
      stack,
      state=state,
      start=start,
      loaded=report.text() if report else "",
      preemption=preemption,
      end_if_hung=end_if_hung,
      in_flight=in_flight,
    )


def _open_workdir(
  directory: epath.PathLike, record: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, Any] | None:
  """Makes this run the owner of the workdir; gives the record of the run that was there before."""
  first = distributed.is_first_process()
  before: list[dict[str, Any]] = []

  def look() -> None:
    if (epath.Path(directory) / CONFIG_FILE).exists():
      before.append(read_record(directory))
      workdir.compare(directory, before[0], record)

  workdir.together(lambda: workdir.prepare(directory, record, write=first))
  workdir.together(look)
  distributed.check_shared(directory)
  stack.enter_context(workdir.owned(directory))
  if first:
    stack.enter_context(console.copied_to(f"{directory}/{LOG}"))
  return before[0] if before else None


def _train(
  experiment: Experiment,
  directory: epath.PathLike,
  record: dict[str, Any],
  checkpoints: Checkpoints,
  stack: contextlib.ExitStack,
  *,
  state: TrainState,
  start: int,
  loaded: str,
  preemption: StopRequest | None,
  end_if_hung: bool,
  in_flight: int,
) -> Report | None:
  """The workdir is ours and the state is there: makes the hooks, compiles, and runs the steps."""
  config, first = experiment.config, distributed.is_first_process()
  total = config.total_steps
  progress = Progress(start=start, total=total, active=first)
  rates, waited = experiment.learning_rates(), _Waited()
  timing = hooks.Timing(
    directory,
    config,
    model=experiment.model,
    devices=list(experiment.mesh.devices.flat),
    start=start,
    waited=waited,
    say=progress.say,
  )
  metrics = hooks.Metrics(
    directory,
    start=start,
    rates=timing.take,
    learning_rates=rates.tolist(),
    progress=progress,
    trackers=open_trackers(config, directory, active=first),
  )
  keeps_best = config.checkpoint.get("save_pretrained", True)
  evaluation = hooks.Evaluation(
    directory,
    config,
    experiment.make_evaluator(),
    metrics,
    checkpoints,
    start=start,
    save_best=hooks.keep_best(directory, record) if keeps_best else None,
    preemption=preemption,
  )
  saving = hooks.Saving(checkpoints, config, start=start, preemption=preemption)
  run_hooks = [timing, metrics, saving, evaluation]
  if end_if_hung:
    run_hooks.insert(0, hooks.HangDetector(float(config.get("hosts", {}).get("step_timeout_seconds", 0.0))))
  for hook in run_hooks:
    stack.callback(hook.close)
  _say_card(experiment, directory, metrics, start, loaded)
  step_fn, feed, key = None, iter(()), None
  if start < total and not evaluation.over:
    feed = stack.enter_context(
      prefetch_to_devices(experiment.train_batches(start_step=start), experiment.mesh)
    )
    waited.feed, key = feed, experiment.key()
    with ticking("compiling the training step", active=first):
      step_fn = experiment.lower_step(batch_size=config.batch_size).compile()
  try:
    run_steps(
      step_fn,
      state,
      key,
      feed,
      run_hooks,
      start=start,
      total=total,
      every=config.log.every_steps,
      in_flight=in_flight,
    )
  except NotFinite as error:
    raise TrainingStopped(_advice(error, checkpoints, start)) from None
  return evaluation.report


class _Waited:
  """Seconds that a feed was waited for so far; 0 while there is none."""

  feed: Any = None

  def __call__(self) -> float:
    return self.feed.wait if self.feed is not None else 0.0


def _say_card(
  experiment: Experiment, directory: epath.PathLike, metrics: hooks.Metrics, start: int, loaded: str
) -> None:
  config, params = experiment.config, experiment.shapes.params
  card = recipe_card(
    config,
    model=experiment.model,
    params=params,
    mesh=experiment.mesh,
    num_classes=experiment.num_classes,
    groups=parameter_groups(config.optimizer, params),
    frozen=frozen_paths(params, tuple(config.frozen)),
    lengths=experiment.lengths,
    start_step=start,
    loaded=loaded,
    more={"speed": card_row(list(experiment.mesh.devices.flat))},
  )
  if distributed.is_first_process():
    console.print_line(card)
    (epath.Path(directory) / results.CARD).write_text(card + "\n")
  metrics.board.text("recipe", card)


def _advice(error: NotFinite, checkpoints: Checkpoints, start: int) -> str:
  """The message of a run that has stopped, after taking a last save that cannot be good out of the way."""
  checkpoints.wait()
  steps = checkpoints.steps()
  # A save is good when a step after it was finite: what the bad step began from is not.
  if error.step - 1 in steps and error.step - 1 > 0:
    checkpoints.set_aside(error.step - 1)
    steps.remove(error.step - 1)
  good = f"step {steps[-1]}" if steps else "none yet"
  where = f"{error.what} at step {error.step}, on the images {', '.join(error.ids)}"
  if error.step == 1:
    return (
      f"{where}, the first of the run: look at the images and labels, --config.preprocess and"
      " --config.init_from; then at --config.optimizer.learning_rate"
    )
  return (
    f"{where}; last good checkpoint: {good}. Lower --config.optimizer.learning_rate, set"
    " --config.optimizer.grad_clip, or look at these images"
  )
