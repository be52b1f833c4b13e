"""What a config comes to: data opened once, model, optimizer, mesh, evaluator, and the step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxseg import config as config_lib
from jaxseg import data, lazy, sharding
from jaxseg.checkpoint import Checkpoints
from jaxseg.config import validate
from jaxseg.config.keys import name_of
from jaxseg.config.values import nearest
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.errors import UserError
from jaxseg.hub import LoadReport, load_with_report
from jaxseg.models import channels_of
from jaxseg.train.optimizer import make_optimizer, make_schedule, parameter_groups
from jaxseg.train.step import Step, TrainState, create_state, jit_step, make_step
from jaxseg.types import Batch, Preprocess

# What is trained, which the loop does not know: a module with the functions of `Task`, by `config.task`.
# Its line here is all it takes. Resolved on first use: a task brings its own evaluation and data.
TASKS = {
  "segmentation": "jaxseg.train.segmentation",
  "classification": "jaxseg.train.classification",
}


@runtime_checkable
class Report(Protocol):
  """What an evaluation gives; the first of its scores is the one that a run is judged by."""

  def scalars(self) -> dict[str, float]: ...


@runtime_checkable
class Task(Protocol):
  """The functions of a task's module.

  - `make_loss(config, model)`: (outputs, batch["label"]) → loss, parts;
  - `make_prepare(config, ...)`: (batch, key) → batch, on the device, see `make_step`;
  - `batch_shapes(config, batch_size)`: what a step is given, as shapes;
  - `train_batches(config, ...)`: this process's rows of the batches from `start_step` on;
  - `make_evaluator(model, config, ...)`: a function (variables, exact=, progress=) → Report, which calls
    `progress` after each batch, in every process of a job; both take `source`, the split opened already.

  What a task's config may hold and what the recipe card says of it is in `jaxseg.config.tasks`.
  """

  def make_loss(self, config: ml_collections.ConfigDict, model: Any) -> Callable: ...
  def make_prepare(
    self, config: ml_collections.ConfigDict, *, preprocess: Preprocess, num_classes: int
  ) -> Callable[[Batch, jax.Array], Batch]: ...
  def batch_shapes(
    self, config: ml_collections.ConfigDict, batch_size: int
  ) -> dict[str, jax.ShapeDtypeStruct]: ...
  def train_batches(
    self,
    config: ml_collections.ConfigDict,
    *,
    preprocess: Preprocess,
    start_step: int,
    mesh: Mesh,
    source: Source | None = None,
  ) -> Iterator[Batch]: ...
  def make_evaluator(
    self,
    model: Any,
    config: ml_collections.ConfigDict,
    *,
    info: DatasetInfo,
    preprocess: Preprocess,
    mesh: Mesh,
    source: Source | None = None,
  ) -> Callable[..., Report]: ...


def task_of(config: ml_collections.ConfigDict) -> Task:
  """The module of `config.task`.

  Raises:
    UserError: there is no such task.
  """
  name = name_of(config)
  if name not in TASKS:
    raise UserError(f"config.task is {name!r}, which is no task{nearest(name, TASKS)}")
  return lazy.load(TASKS[name])


def headline(report: Report) -> str:
  """The score that a run is judged by: "mIoU 0.7512"."""
  name, value = next(iter(report.scalars().items()))
  return f"{name} {value:.4f}"


# What a model may draw from in training; Light-Ham's bases are redrawn every step, as published.
_STREAMS = ("dropout", "nmf")
# Images that `loss.class_weights` "auto" counts, evenly spaced over the split.
_COUNTED = 500


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a config comes to, before any array exists.

  Attributes:
    config: resolved or not.
    mesh: over the devices of all processes.
    info: classes and palette.
    num_classes: of the model.
    sources: split → its examples, opened once; {} for a plan without data.
    model: the Linen module.
    preprocess: how images are normalised.
    loss_fn: (outputs, labels) → loss, parts.
    tx: the optimizer.
    shapes: the train state's.
  """

  config: ml_collections.ConfigDict
  mesh: Mesh
  info: DatasetInfo
  num_classes: int
  sources: Mapping[str, Source]
  model: Any
  preprocess: Preprocess
  loss_fn: Callable
  tx: Any
  shapes: TrainState

  @property
  def lengths(self) -> dict[str, int]:
    """Split → number of examples."""
    return {split: len(source) for split, source in self.sources.items()}

  @property
  def data_state(self) -> dict[str, dict[str, Any]]:
    """Split → number of examples, and a text that other files change ("" where the source knows none)."""
    return {
      split: {"examples": len(source), "state": getattr(source, "state", "")}
      for split, source in self.sources.items()
    }

  def make_step(self) -> Step:
    """The training step, not yet compiled."""
    config = self.config
    prepare = task_of(config).make_prepare(config, preprocess=self.preprocess, num_classes=self.num_classes)
    return make_step(
      self.loss_fn,
      self.tx,
      prepare=prepare,
      streams=_STREAMS,
      frozen=tuple(config.frozen),
      ema_decay=config.ema_decay,
      accumulate=config.accumulate,
    )

  def lower_step(self, *, batch_size: int) -> jax.stages.Lowered:
    """The step that a run takes, ready for the compiler.

    Args:
      batch_size: images, over all devices.
    """
    batch = task_of(self.config).batch_shapes(self.config, batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jit_step(self.make_step(), self.mesh, self.shapes).lower(self.shapes, batch, key)

  def train_batches(self, *, start_step: int) -> Any:
    """The rows of this process in the batches from `start_step` on, on the host."""
    config = self.config
    source = self.sources[config.data.train_split]
    return task_of(config).train_batches(
      config, preprocess=self.preprocess, start_step=start_step, mesh=self.mesh, source=source
    )

  def make_evaluator(self) -> Callable[..., Report]:
    """(variables, progress=) → report on the evaluation split."""
    config = self.config
    source = self.sources[config.data.eval_split]
    return task_of(config).make_evaluator(
      self.model, config, info=self.info, preprocess=self.preprocess, mesh=self.mesh, source=source
    )

  def learning_rates(self) -> np.ndarray:
    """The base rate of every step of the run, made at once: for the log, not for the update."""
    optimizer = self.config.optimizer
    rate = make_schedule(optimizer.schedule, optimizer.learning_rate)
    return np.asarray(jax.jit(jax.vmap(rate))(np.arange(self.config.total_steps, dtype=np.int32)))

  def key(self) -> jax.Array:
    """The random key of the run, on the mesh: under the transfer guard a step may not move it there."""
    where = sharding.replicated(self.mesh)
    return jax.jit(lambda: jax.random.key(self.config.seed), out_shardings=where)()

  def restore(self, checkpoints: Checkpoints) -> tuple[TrainState, int] | None:
    """The state of the latest undamaged checkpoint and its step; None where there is none.

    Raises:
      UserError: it is of another model, or beyond the last step.
    """
    step = checkpoints.latest_step()
    if step is not None and step > self.config.total_steps:
      raise UserError(
        f"the workdir is at step {step}, beyond config.total_steps {self.config.total_steps}; raise it"
      )
    like = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return checkpoints.restore_latest(jax.tree.map(like, self.shapes, self._shardings()))

  def init(self) -> tuple[TrainState, LoadReport | None]:
    """The state before the first step, and what was loaded from `init_from`; None without it.

    Raises:
      UserError: `init_from` cannot be read or does not fit.
    """
    config, shardings = self.config, self._shardings()
    if not config.init_from:
      # Compiled, so that each device makes only the part that it keeps.
      return jax.jit(lambda: self._create(_init(self.model, config)), out_shardings=shardings)(), None
    variables = jax.device_get(jax.jit(lambda: _init(self.model, config))())
    keep, adapt = tuple(config.init_keep), config.get("init_adapt_channels", False)
    variables, report = load_with_report(config.init_from, variables, keep=keep, adapt_channels=adapt)
    return jax.jit(self._create, out_shardings=shardings)(jax.device_get(variables)), report

  def _create(self, variables: Any) -> TrainState:
    return create_state(self.model, variables, self.tx, ema=self.config.ema_decay > 0)

  def _shardings(self) -> Any:
    return sharding.state_sharding(self.shapes, self.mesh)


def build_experiment(config: ml_collections.ConfigDict) -> Experiment:
  """Everything that can be wrong with a config is wrong here: before a workdir is touched or XLA called.

  Raises:
    UserError: one sentence about a value, a combination, or the data.
  """
  validate.validate(config)
  mesh = make_mesh(config.mesh)
  validate.validate_batches(config, mesh)
  experiment = assemble(config, mesh)
  splits = dict.fromkeys((config.data.train_split, config.data.eval_split))
  sources = {split: data.open_split(config.data, split) for split in splits}
  if config.loss.get("class_weights") == "auto":
    source = sources[config.data.train_split]
    counts = data.label_histogram(source, num_classes=experiment.num_classes, samples=_COUNTED)
    counted = _with_class_weights(config, data.class_weights(counts))
    experiment = assemble(counted, mesh)
  return dataclasses.replace(experiment, sources=sources)


def _with_class_weights(config: ml_collections.ConfigDict, weights: Any) -> ml_collections.ConfigDict:
  """A copy with these numbers in place of "auto"."""
  config = config.copy_and_resolve_references()
  with config.unlocked(), config.loss.ignore_type():
    config.loss.class_weights = tuple(float(weight) for weight in weights)
  return config


def assemble(config: ml_collections.ConfigDict, mesh: Mesh) -> Experiment:
  """What a valid config comes to on a mesh, without the images: no data set and no device need be there.

  Raises:
    UserError: as `build_experiment`.
  """
  info = data.dataset_info(config.data)
  num_classes = validate.validate_classes(config, info.classes)
  if config.loss.get("class_weights") == "auto":  # not counted yet: the program is the same
    config = _with_class_weights(config, np.ones(num_classes))
  model = config_lib.build_model(config, num_classes)
  shapes = jax.eval_shape(lambda: _init(model, config))
  groups = parameter_groups(config.optimizer, shapes["params"])
  validate.validate_parameters(config, {path: group.name for path, group in groups.items()})
  tx = make_optimizer(config.optimizer, shapes["params"], frozen=tuple(config.frozen))
  create = lambda variables: create_state(model, variables, tx, ema=config.ema_decay > 0)  # noqa: E731
  return Experiment(
    config=config,
    mesh=mesh,
    info=info,
    num_classes=num_classes,
    sources={},
    model=model,
    preprocess=config_lib.make_preprocess(config.preprocess),
    loss_fn=task_of(config).make_loss(config, model),
    tx=tx,
    shapes=jax.eval_shape(create, shapes),
  )


def make_mesh(mesh: ml_collections.ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of `config.mesh` over `devices` (JAX's by default); its `devices=n` takes only the first n.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if not 0 <= mesh.devices <= len(devices):
    raise UserError(f"config.mesh.devices is {mesh.devices}, and there are {len(devices)}; 0 takes all")
  if mesh.devices and jax.process_count() > 1:
    raise UserError(
      f"config.mesh.devices is {mesh.devices}, but a run on several hosts uses all; set it to 0"
    )
  try:
    return sharding.make_mesh(
      data=mesh.data, fsdp=mesh.fsdp, spatial=mesh.spatial, devices=devices[: mesh.devices or None]
    )
  except UserError as error:
    raise UserError(f"config.mesh: {error}") from None


def _init(model: Any, config: ml_collections.ConfigDict) -> dict[str, Any]:
  image = jax.numpy.zeros((1, *config.data.crop_size, channels_of(model)))
  return model.init(jax.random.key(config.seed), image, train=False)
