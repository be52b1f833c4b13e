"""What can be said against a config before anything is compiled: one sentence each."""

import math
from collections.abc import Sequence
from typing import Any

import ml_collections
from jax.sharding import AbstractMesh, Mesh

from jaxseg import catalog, models, sharding
from jaxseg.errors import UserError
from jaxseg.train import config as config_lib
from jaxseg.train.overrides import nearest
from jaxseg.train.tasks import name_of, task_of

# Dotted key → (lowest, highest) allowed; None is open.
Ranges = dict[str, tuple[int | float, int | float | None]]

# Optimizer, schedule, loss and data set check their own keys when they are made, which is before
# anything is compiled too.
_CHOICES = {
  "dtype": config_lib.DTYPES,
  "preprocess.channel_order": ("rgb", "bgr"),
}
_RANGES: Ranges = {
  "total_steps": (1, None),
  "batch_size": (1, None),
  "accumulate": (1, None),
  "mesh.devices": (0, None),
  "ema_decay": (0.0, 1.0),
  "data.flip": (0.0, 1.0),
  "data.workers": (-1, None),
  "optimizer.learning_rate": (0.0, None),
  "optimizer.weight_decay": (0.0, None),
  "optimizer.grad_clip": (0.0, None),
  "optimizer.b1": (0.0, 1.0),
  "optimizer.b2": (0.0, 1.0),
  "optimizer.eps": (0.0, None),
  "optimizer.momentum": (0.0, 1.0),
  "optimizer.schedule.total_steps": (1, None),
  "optimizer.schedule.every": (1, None),
  "optimizer.schedule.warmup_ratio": (0.0, 1.0),
  "optimizer.schedule.warmup_steps": (0, None),
  "loss.label_smoothing": (0.0, 1.0),
  "eval.every_steps": (0, None),
  "eval.batch_size": (1, None),
  "checkpoint.every_steps": (0, None),
  "checkpoint.keep_last": (1, None),
  "log.every_steps": (1, None),
}
_TASK_CHOICES = {
  "segmentation": {"data.color": ("none", "photometric")},
  "classification": {},
}
_TASK_RANGES: dict[str, Ranges] = {
  "segmentation": {
    "model.num_classes": (0, 254),  # 255 is the ignore label
    "data.scale_step": (0.0, None),
    "log.panel_every_steps": (0, None),
    "log.panel_images": (0, None),
  },
  "classification": {
    "model.num_classes": (0, None),
    "data.randaugment_layers": (0, None),
    "data.randaugment_magnitude": (0.0, 10.0),
    "data.randaugment_std": (0.0, None),
    "data.mixup_alpha": (0.0, None),
    "data.cutmix_alpha": (0.0, None),
    "data.switch_probability": (0.0, 1.0),
    "data.erase_probability": (0.0, 1.0),
    "eval.crop_share": (0.0, 1.0),
  },
}
_MIN_CROP = 32


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks the values of a config, alone and together; nothing is read and no device is asked.

  Raises:
    UserError: the key, its value, what is allowed.
  """
  task, name = task_of(config), name_of(config)
  known = task.archs()
  if config.model.arch not in known:
    hint = catalog.suggestion(config.model.arch, known)
    kind = f"no model of {name}" if config.model.arch in models.list_models() else "no model"
    raise UserError(f"config.model.arch is {config.model.arch!r}, which is {kind}; {hint}")
  config_lib.check_fields(config.model)
  _check_choices(config, _CHOICES | _TASK_CHOICES[name])
  _check_ranges(config, _RANGES | _TASK_RANGES[name])
  for key in ("ema_decay", "optimizer.b1", "optimizer.b2", "optimizer.momentum"):
    if _get(config, key) == 1.0:
      raise UserError(f"config.{key} is 1.0, with which nothing ever changes; expected below 1")
  if min(config.data.crop_size) < _MIN_CROP:
    raise UserError(
      f"config.data.crop_size is {config.data.crop_size}; models need at least {_MIN_CROP} pixels a side"
    )
  _check_times(config)
  task.check(config)
  if any(std <= 0 for std in config.preprocess.std):
    raise UserError(f"config.preprocess.std is {tuple(config.preprocess.std)}; each must be above 0")
  schedule = config.optimizer.schedule
  if schedule.warmup_steps > schedule.total_steps:
    raise UserError(
      f"config.optimizer.schedule.warmup_steps is {schedule.warmup_steps}, more than its total_steps"
      f" {schedule.total_steps}"
    )


def _check_times(config: ml_collections.ConfigDict) -> None:
  steps = tuple(config.get("profile_steps", ()))
  whole = all(type(step) is int for step in steps)
  if steps and not (whole and len(steps) == 2 and 1 <= steps[0] <= steps[1] <= config.total_steps):
    raise UserError(
      f"config.profile_steps is {steps}; expected the first and the last step to trace, between 1 and"
      f" config.total_steps {config.total_steps}, such as (10, 15), or () for none"
    )
  seconds = float(config.get("hosts", {}).get("step_timeout_seconds", 0.0))
  if not 0 <= seconds < math.inf:
    raise UserError(
      f"config.hosts.step_timeout_seconds is {seconds}; expected the seconds that no step may take, or 0 to"
      " wait for ever"
    )
  patience = config.get("early_stopping", {}).get("patience", 0)
  if patience < 0:
    raise UserError(
      f"config.early_stopping.patience is {patience}; expected a number of evaluations, or 0 for none"
    )


def _check_choices(config: ml_collections.ConfigDict, allowed: dict[str, tuple[str, ...]]) -> None:
  for key, choices in allowed.items():
    value = _get(config, key)
    if value not in choices:
      known = ", ".join(map(repr, choices))
      hint = nearest(str(value), choices)
      hint = hint if "did you mean" in hint else ""
      raise UserError(f"config.{key} is {value!r}; expected one of {known}{hint}")


def _check_ranges(config: ml_collections.ConfigDict, allowed: Ranges) -> None:
  for key, (low, high) in allowed.items():
    value = _get(config, key)
    if value < low or (high is not None and value > high):
      span = f"at least {low}" if high is None else f"between {low} and {high}"
      raise UserError(f"config.{key} is {value}; expected {span}")


def validate_batches(
  config: ml_collections.ConfigDict,
  mesh: Mesh | AbstractMesh,
  *,
  keys: Sequence[str] = ("batch_size", "eval.batch_size"),
) -> None:
  """Global batch sizes against the devices of the mesh and the processes of the job.

  Raises:
    UserError: naming the nearest sizes that divide.
  """
  for key in keys:
    try:
      sharding.check_batch(_get(config, key), mesh)
    except ValueError as error:
      raise UserError(f"config.{key}: {error}") from None
  if "batch_size" in keys and config.accumulate > 1:
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
  if weights and len(weights) != count:
    raise UserError(
      f"config.loss.class_weights has {len(weights)} values for {count} classes; give {count}, or () for none"
    )
  return count


def _short(classes: Sequence[str]) -> str:
  return ", ".join(classes) if len(classes) <= 6 else f"{', '.join(classes[:5])}, ... {classes[-1]}"


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
  for part in key.split("."):
    config = config[part]
  return config
