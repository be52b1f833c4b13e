"""What can be said against a config before anything is compiled: one sentence each."""

import re
from collections.abc import Mapping, Sequence

import ml_collections
from jax.sharding import AbstractMesh, Mesh

from jaxseg import catalog, models, sharding
from jaxseg.config import fields, keys, tasks
from jaxseg.config.keys import name_of
from jaxseg.errors import UserError

# Pixels of a step's batch: far beyond any published recipe (2^32 are 16,384 images of 512x512).
_MAX_PIXELS = 2**33


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks the values of a config, alone and together; nothing is read and no device is asked.

  Raises:
    UserError: the key, its value, what is allowed.
  """
  keys.check_values(config)
  name, known = name_of(config), tasks.archs(config)
  if config.model.arch not in known:
    hint = catalog.suggestion(config.model.arch, known)
    kind = f"no model of {name}" if config.model.arch in models.list_models() else "no model"
    raise UserError(f"config.model.arch is {config.model.arch!r}, which is {kind}; {hint}")
  fields.check_fields(config.model)
  tasks.check(config)
  _check_steps(config)
  height, width = config.data.crop_size
  if config.batch_size * height * width > _MAX_PIXELS:
    raise UserError(
      f"config.batch_size {config.batch_size} of {height}x{width} is"
      f" {config.batch_size * height * width:,} pixels a step; expected at most {_MAX_PIXELS:,}"
    )
  if config.optimizer.get("nesterov") and config.optimizer.name == "sgd" and not config.optimizer.momentum:
    raise UserError("config.optimizer.nesterov looks ahead with momentum, which is 0; switch it off")
  for key in ("frozen", "init_keep"):
    for pattern in config.get(key, ()):
      _check_pattern(f"config.{key}", pattern)
  for pattern, _, _ in config.optimizer.get("groups", ()):
    _check_pattern("config.optimizer.groups", pattern)


def _check_steps(config: ml_collections.ConfigDict) -> None:
  schedule = config.optimizer.schedule
  if schedule.warmup_steps > schedule.total_steps:
    raise UserError(
      f"config.optimizer.schedule.warmup_steps is {schedule.warmup_steps}, more than its total_steps"
      f" {schedule.total_steps}"
    )
  if schedule.name in ("poly", "cosine") and schedule.warmup_steps == schedule.total_steps:
    raise UserError(
      f"config.optimizer.schedule.warmup_steps is {schedule.warmup_steps}, all of its total_steps; give"
      f" {schedule.name} steps to go down"
    )
  boundaries = tuple(schedule.get("boundaries", ()))
  if list(boundaries) != sorted(set(boundaries)):
    raise UserError(f"config.optimizer.schedule.boundaries is {boundaries}; expected rising steps")
  steps = tuple(config.get("profile_steps", ()))
  if steps and not steps[0] <= steps[1] <= config.total_steps:
    raise UserError(
      f"config.profile_steps is {steps}; expected the first and the last step to trace, between 1 and"
      f" config.total_steps {config.total_steps}, such as (10, 15), or () for none"
    )


def _check_pattern(where: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    raise UserError(f"{where} holds {pattern!r}, which is no regular expression ({error})") from None


def validate_parameters(config: ml_collections.ConfigDict, names: Mapping[str, str]) -> None:
  """Every pattern of `optimizer.groups` matches some parameter.

  Args:
    config: of an experiment.
    names: path of each parameter → what `optimizer.groups` match: the path, or its published name.

  Raises:
    UserError: a pattern that matches nothing, with the nearest module.
  """
  for pattern, _, _ in config.optimizer.get("groups", ()):
    if not any(re.search(pattern, name) for name in names.values()):
      places = sorted({name.replace(".", "/").rpartition("/")[0] for name in names.values()})
      some = ", ".join(places[:: max(len(places) // 4, 1)][:4])
      raise UserError(
        f"config.optimizer.groups holds {pattern!r}, which is in the name of no parameter; names are like"
        f" {some}; jaxseg info CONFIG --params lists them"
      )


def validate_batches(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> None:
  """The global batch of a step against the devices of the mesh; an evaluation's is filled up to any.

  Raises:
    UserError: naming the nearest sizes that divide.
  """
  try:
    sharding.check_batch(config.batch_size, mesh)
  except ValueError as error:
    raise UserError(f"config.batch_size: {error}") from None
  if config.accumulate > 1:
    _check_micro_batches(config.batch_size, config.accumulate, mesh)


def _check_micro_batches(batch_size: int, parts: int, mesh: Mesh | AbstractMesh) -> None:
  """A step's batch has to be cut into equal micro-batches, each spread evenly over the devices."""
  groups = mesh.shape["data"] * mesh.shape["fsdp"]
  unit = parts * groups
  if batch_size % unit:
    above = (batch_size // unit + 1) * unit
    nearest = f"{batch_size - batch_size % unit} or {above}" if batch_size > unit else f"{above}"
    raise UserError(
      f"config.accumulate is {parts}, which does not cut config.batch_size {batch_size} into micro-batches"
      f" that {groups} device groups share evenly; use a batch of {nearest}"
    )


def validate_classes(config: ml_collections.ConfigDict, classes: Sequence[str]) -> int:
  """The number of classes, when model, data and loss agree about it.

  Raises:
    UserError: they do not.
  """
  count = config.model.num_classes or len(classes)
  if count != len(classes):
    raise UserError(
      f"config.model.num_classes is {count}, but {config.data.name} has {len(classes)} classes"
      f" ({_short(classes)}); 0 takes the data set's"
    )
  weights = config.loss.get("class_weights")
  if weights and weights != "auto" and len(weights) != count:
    raise UserError(
      f"config.loss.class_weights has {len(weights)} values for {count} classes; give {count}, auto, or ()"
      " for none"
    )
  return count


def _short(classes: Sequence[str]) -> str:
  return ", ".join(classes) if len(classes) <= 6 else f"{', '.join(classes[:5])}, ... {classes[-1]}"
