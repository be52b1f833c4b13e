"""The training loop: restore → (save → evaluate → step)*. It only puts things in order.

What a step does is in `step.py`, what is learned from which data in a task (`tasks.py`); another
method passes another loss, step or task to it and never copies this file. The position in the data
is the global step and nothing else, and the random key is folded with it, so a resumed run takes
the very steps that the stopped one would have.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxseg import config as config_lib
from jaxseg import data, sharding
from jaxseg.checkpoint import Checkpoints
from jaxseg.config import record, validate
from jaxseg.config.card import recipe_card
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.errors import UserError
from jaxseg.train import hosts, job, workdir
from jaxseg.train.best import BestWeights
from jaxseg.train.frozen import frozen_paths
from jaxseg.train.guard import Guard
from jaxseg.train.logging import Board, MetricsLog, Progress, say
from jaxseg.train.optimizer import make_optimizer, parameter_groups
from jaxseg.train.preemption import Preempted, Preemption, sentence
from jaxseg.train.runtime import end_job, make_mesh
from jaxseg.train.schedule import make_schedule
from jaxseg.train.speed import card_row
from jaxseg.train.state import TrainState, create_state
from jaxseg.train.step import Step, jit_step, make_step
from jaxseg.train.tasks import Report, headline, task_of
from jaxseg.train.watching import Watch
from jaxseg.types import Preprocess

# What a model may draw from in training; Light-Ham's bases are redrawn every step, as published.
_STREAMS = ("dropout", "drop_path", "nmf")


@dataclasses.dataclass(frozen=True)
class Run:
  """What a config comes to, before any array exists."""

  config: ml_collections.ConfigDict
  mesh: Mesh
  info: DatasetInfo
  num_classes: int
  lengths: dict[str, int]
  model: Any
  preprocess: Preprocess
  loss_fn: Callable
  tx: Any
  shapes: TrainState
  sources: Mapping[str, Source] = dataclasses.field(default_factory=dict)  # of each split, opened once


def plan(config: ml_collections.ConfigDict) -> Run:
  """Everything that can be wrong with a config is wrong here: before a workdir is touched or XLA called.

  Raises:
    UserError: one sentence about a value, a combination, or the data.
  """
  validate.validate(config)
  mesh = make_mesh(config.mesh)
  validate.validate_batches(config, mesh)
  run = assemble(config, mesh)
  splits = dict.fromkeys((config.data.train_split, config.data.eval_split))
  sources = {split: data.open_split(config.data, split) for split in splits}
  return dataclasses.replace(run, lengths={split: len(s) for split, s in sources.items()}, sources=sources)


def assemble(config: ml_collections.ConfigDict, mesh: Mesh) -> Run:
  """What a valid config comes to on a mesh, without the pictures: no data set and no device need be there.

  Raises:
    UserError: as `plan`.
  """
  info = data.dataset_info(config.data)
  num_classes = validate.validate_classes(config, info.classes)
  model = config_lib.build_model(config, num_classes)
  loss_fn = task_of(config).make_loss(config, model)
  shapes = jax.eval_shape(lambda: _init(model, config))
  validate.validate_parameters(
    config, {path: group.name for path, group in parameter_groups(config.optimizer, shapes["params"]).items()}
  )
  tx = make_optimizer(config.optimizer, shapes["params"], frozen=tuple(config.frozen))
  return Run(
    config=config,
    mesh=mesh,
    info=info,
    num_classes=num_classes,
    lengths={},
    model=model,
    preprocess=config_lib.make_preprocess(config.preprocess),
    loss_fn=loss_fn,
    tx=tx,
    shapes=jax.eval_shape(
      lambda variables: create_state(model, variables, tx, ema=config.ema_decay > 0), shapes
    ),
  )


def train(config: ml_collections.ConfigDict, directory: epath.PathLike) -> Report | None:
  """Trains until `config.total_steps`, from scratch or from where an earlier run in `directory` got.

  Returns:
    The report of the last evaluation that this call made; None when the run was complete already.

  Raises:
    UserError: a config, data set or workdir that cannot run.
    TrainingStopped: a loss or gradient that is not finite.
    Preempted: told to go (SIGTERM); what was done is saved.
  """
  with Preemption() as preemption:
    return _train(config, directory, preemption)


def _train(
  config: ml_collections.ConfigDict, directory: epath.PathLike, preemption: Preemption
) -> Report | None:
  run = plan(config)
  first = jax.process_index() == 0
  values = record.make_record(
    config, num_classes=run.num_classes, classes=run.info.classes, palette=run.info.palette
  )
  hosts.check_same({"pictures of each split": run.lengths, "classes": list(run.info.classes)})
  workdir.prepare(directory, values, write=first)
  hosts.check_shared(directory)
  if not first:  # which has tried
    workdir.check_writable(directory)
  hosts.gather("all can write")  # before Orbax looks what lies there
  with contextlib.ExitStack() as stack:
    checkpoints = Checkpoints(
      epath.Path(directory) / record.CHECKPOINTS,
      keep_last=config.checkpoint.keep_last,
      on_failure=end_job,
    )
    stack.push(job.at_good_end(checkpoints.close))
    state, start = _restore_or_init(run, checkpoints)
    preemption.saved(start)
    if first:  # not before: a config that cannot go on is not the workdir's
      workdir.update(directory, values)
    log = MetricsLog(directory, resume_step=start, active=first)
    stack.callback(log.flush, force=True)
    board = Board(directory, resume_step=start, active=first)
    stack.callback(board.close)
    card = recipe_card(
      config,
      model=run.model,
      params=run.shapes.params,
      mesh=run.mesh,
      num_classes=run.num_classes,
      lengths=run.lengths,
      start_step=start,
      groups=parameter_groups(config.optimizer, run.shapes.params),
      frozen=frozen_paths(run.shapes.params, tuple(config.frozen)),
      more={"speed": card_row(list(run.mesh.devices.flat))},
    )
    if first:
      say(card)
    board.text("recipe", card)
    progress = Progress(
      start=start,
      total=config.total_steps,
      log_every=config.log.every_steps,
      active=first,
    )
    stack.callback(progress.close)
    watch = Watch(
      directory,
      config,
      model=run.model,
      devices=list(run.mesh.devices.flat),
      start=start,
      say=progress.say,
      active=first,
    )
    stack.enter_context(watch)
    best = BestWeights(directory, checkpoints, active=config.checkpoint.get("save_pretrained", False))
    return _sequence(run, state, start, checkpoints, best, log, board, progress, preemption, watch)


def _sequence(
  run: Run,
  state: TrainState,
  start: int,
  checkpoints: Checkpoints,
  best: BestWeights,
  log: MetricsLog,
  board: Board,
  progress: Progress,
  preemption: Preemption,
  watch: Watch,
) -> Report | None:
  """Restore is done; now (save → evaluate → step)*."""
  config, total = run.config, run.config.total_steps
  step_fn = jit_step(run_step(run), run.mesh, state)
  # Made on the mesh: under the transfer guard a step may not move it there.
  key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(run.mesh))()
  rates = _learning_rates(config)
  evaluator = task_of(config).make_evaluator(
    run.model,
    config,
    info=run.info,
    preprocess=run.preprocess,
    mesh=run.mesh,
    source=run.sources.get(config.data.eval_split),
  )
  fetch = _fetcher(run, start)
  guard, report = Guard(), None
  # A CPU is its own accelerator: waiting costs it nothing, and steps in flight can deadlock fake devices.
  on_cpu = run.mesh.devices.flat[0].platform == "cpu"
  in_flight = int(not on_cpu or run.mesh.devices.size == 1)

  def settle(keep: int) -> None:
    """Looks at all but the last `keep` steps, and writes them down."""
    for step, scalars in guard.drain(keep=keep, last_good=lambda: _last_good(checkpoints)):
      watch.finished(guard.finished)
      line = {"loss": scalars.pop("loss"), "lr": float(rates[step - 1]), **scalars}
      log.write(step, line)
      speed = {}
      if step % config.log.every_steps == 0:
        speed = watch.rates(step)
        board.scalars(step, line)
        board.scalars(step, speed, prefix="speed/")
      progress.step(step, line, rates=speed)

  def leave(step: int) -> None:
    checkpoints.wait()
    raise Preempted(sentence(step))

  def evaluate(step: int) -> Report:
    """Scores what is saved as `step`, and adds the scores to the log and to the checkpoint."""
    checkpoints.wait()
    preemption.saved(step)  # a notice needs not wait for the end of the evaluation
    if preemption.reached():  # in the meantime; what follows may compile for long
      leave(step)
    report = evaluator(
      state.eval_variables, exact=step == total, progress=lambda _: preemption.reached() and leave(step)
    )
    metrics = report.scalars()
    log.write(step, metrics)
    board.scalars(step, metrics, prefix="eval/")
    progress.say(f"step {step}: {headline(report)} on {config.data.eval_split}")
    if _due(step, config.log.panel_every_steps) or (step == total and config.log.panel_every_steps):
      board.image(step, "eval/predictions", evaluator.panel(state.eval_variables))
    log.flush(force=True)
    checkpoints.add_metrics(step, metrics)
    best.update()
    progress.pause()
    return report

  best.update()  # the last run may have been stopped before it could
  ahead = fetch() if start < total else None
  for step in range(start, total + 1):
    done = step == total
    # A run that was stopped in an evaluation has the step, and owes its scores.
    evaluating = done or _due(step, config.eval.every_steps)
    evaluating = evaluating and (step > start or (step > 0 and not checkpoints.metrics(step)))
    if step > start:
      going = preemption.reached()
      if going or evaluating or _due(step, config.checkpoint.every_steps):
        settle(keep=0)
        # Before the save: a checkpoint never knows of a step that the log does not.
        log.flush(force=True)
        with watch.aside(step):
          checkpoints.save(step, state)
      if going:
        leave(step)
    if evaluating:
      with watch.aside(step):
        report = evaluate(step)
    log.flush()
    if done:
      break
    ids, batch = ahead
    with watch.step(step + 1), jax.transfer_guard("disallow"):
      state, scalars = step_fn(state, batch, key)
    watch.dispatched(step + 1, scalars["loss"])
    preemption.unsaved()
    guard.push(step + 1, ids, scalars)
    # The device works on the step while the host prepares the next batch.
    ahead = fetch() if step + 1 < total else None
    if on_cpu or (step + 1) % config.log.every_steps == 0:
      settle(keep=in_flight)
  return report


def run_step(run: Run) -> Step:
  """The step of a run, not yet compiled."""
  return make_step(
    run.loss_fn,
    run.tx,
    prepare=task_of(run.config).make_prepare(
      run.config, preprocess=run.preprocess, num_classes=run.num_classes
    ),
    streams=_STREAMS,
    frozen=tuple(run.config.frozen),
    ema_decay=run.config.ema_decay,
    accumulate=run.config.accumulate,
  )


def lower_step(run: Run, *, batch_size: int) -> jax.stages.Lowered:
  """The step that `train` takes, ready for the compiler: with it the step can be compiled before it is run.

  Args:
    run: what `plan` or `assemble` gives.
    batch_size: images, over all devices.
  """
  batch = task_of(run.config).batch_shapes(run.config, batch_size)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jit_step(run_step(run), run.mesh, run.shapes).lower(run.shapes, batch, key)


def _init(model: Any, config: ml_collections.ConfigDict) -> dict[str, Any]:
  image = jax.numpy.zeros((1, *config.data.crop_size, 3))
  return model.init(jax.random.key(config.seed), image, train=False)


def _restore_or_init(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, int]:
  """The state of the latest whole checkpoint; else weights of `init_from`; else fresh ones. And the step."""
  shardings = sharding.state_sharding(run.shapes, run.mesh)
  step = checkpoints.latest_step()
  if step is not None and step > run.config.total_steps:
    raise UserError(
      f"the workdir is at step {step}, beyond config.total_steps {run.config.total_steps}; raise it"
    )
  like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), run.shapes, shardings)
  if (found := checkpoints.restore_latest(like)) is not None:
    return found
  if run.config.init_from:
    from jaxseg import hub

    variables = jax.device_get(jax.jit(lambda: _init(run.model, run.config))())
    variables = hub.load_pretrained(run.config.init_from, variables, keep=tuple(run.config.init_keep))
    make = jax.jit(lambda values: _create(run, values), out_shardings=shardings)
    return make(jax.device_get(variables)), 0
  # Compiled, so that each device makes only the part that it keeps.
  make = jax.jit(lambda: _create(run, _init(run.model, run.config)), out_shardings=shardings)
  return make(), 0


def _create(run: Run, variables: Any) -> TrainState:
  return create_state(run.model, variables, run.tx, ema=run.config.ema_decay > 0)


def _fetcher(run: Run, start: int) -> Callable[[], tuple[list[str], dict[str, jax.Array]]]:
  """A function that gives the next batch: this process's example ids, and the global arrays."""
  make = task_of(run.config).train_batches
  source = run.sources.get(run.config.data.train_split)
  batches = iter(make(run.config, preprocess=run.preprocess, start_step=start, mesh=run.mesh, source=source))

  def fetch():
    batch = next(batches)
    return list(batch["id"]), sharding.to_global(batch, run.mesh)

  return fetch


def _learning_rates(config: ml_collections.ConfigDict) -> np.ndarray:
  """The base rate of every step of the run, made at once: for the log, not for the update."""
  rate = make_schedule(config.optimizer.schedule, config.optimizer.learning_rate)
  return np.asarray(jax.jit(jax.vmap(rate))(np.arange(config.total_steps, dtype=np.int32)))


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _last_good(checkpoints: Checkpoints) -> str:
  checkpoints.wait()
  step = checkpoints.latest_step()
  return "none yet" if step is None else f"step {step}"
