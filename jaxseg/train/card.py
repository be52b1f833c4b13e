"""The recipe card: what is about to run, in words that can be held against a paper."""

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxseg.macs import count_macs
from jaxseg.models import first_whole_stage
from jaxseg.train.frozen import frozen_paths, path_of
from jaxseg.train.optimizer import parameter_groups
from jaxseg.train.speed import card_row
from jaxseg.train.tasks import task_of


def recipe_card(
  config: ml_collections.ConfigDict,
  *,
  model: nn.Module,
  params: Any,
  mesh: Mesh,
  num_classes: int,
  lengths: Mapping[str, int],
  start_step: int,
) -> str:
  """The card as text, one fact a line.

  Args:
    model: what is trained.
    params: the model's parameters, or their shapes.
    lengths: split → number of examples.
    start_step: step that the run goes on from.
  """
  about = task_of(config).card_rows(config, model)
  rows = {
    "model": _model(config, model, params, num_classes),
    "data": ", ".join(f"{split} {n}" for split, n in lengths.items()) + f" ({config.data.name})",
    "batch": _batch(config, mesh, lengths[config.data.train_split]),
    "steps": _steps(config, start_step, lengths[config.data.train_split]),
    "augmentation": about.pop("augmentation"),
    "input": _input(config.preprocess),
    **about,
    "optimizer": _optimizer(config.optimizer),
    "schedule": _schedule(config.optimizer),
    "decay": _decay(config, params),
    **_kept(config, params),
    "precision": f"computes in {config.dtype}; parameters, statistics and loss in float32",
    "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    + f" on {mesh.devices.size} {mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es)",
    **rows_split(config, model, mesh),
    "speed": card_row(list(mesh.devices.flat)),
  }
  width = max(map(len, rows))
  return "\n".join(f"{name:>{width}}  {text}" for name, text in rows.items())


def _model(config: ml_collections.ConfigDict, model: nn.Module, params: Any, num_classes: int) -> str:
  height, width = config.data.crop_size
  macs = count_macs(model, (height, width)) / 1e9
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
  return (
    f"{config.model.arch}, {num_classes} classes, {count:,} parameters, {macs:.3g} GMACs at {height}x{width}"
  )


def _batch(config: ml_collections.ConfigDict, mesh: Mesh, examples: int) -> str:
  groups = mesh.shape["data"] * mesh.shape["fsdp"]
  parts = config.accumulate
  cut = f" in {parts} micro-batches, gradients averaged" if parts > 1 else ""
  return (
    f"{config.batch_size} images a step ({config.batch_size // groups} a device group){cut},"
    f" {examples / config.batch_size:.4g} steps an epoch"
  )


def rows_split(config: ml_collections.ConfigDict, model: nn.Module, mesh: Mesh) -> dict[str, str]:
  """A row about the rows of an image, where several devices share them."""
  parts = mesh.shape["spatial"]
  if parts == 1:
    return {}
  first = first_whole_stage(model, tuple(config.data.crop_size), spatial=parts)
  until = "in all stages" if first is None else f"up to {first}, which every device has whole"
  return {"rows": f"of an image over {parts} devices {until}"}


def _steps(config: ml_collections.ConfigDict, start: int, examples: int) -> str:
  epochs = config.total_steps * config.batch_size / max(examples, 1)
  resumed = f", from step {start}" if start else ""
  return f"{config.total_steps:,} ({epochs:.4g} epochs){resumed}"


def _input(preprocess: ml_collections.ConfigDict) -> str:
  mean, std = (" ".join(f"{value:g}" for value in preprocess[key]) for key in ("mean", "std"))
  return f"{preprocess.channel_order}, minus ({mean}), over ({std})"


def _kept(config: ml_collections.ConfigDict, params: Any) -> dict[str, str]:
  """Rows for what few recipes have: frozen parameters, a moving average."""
  rows = {}
  if config.frozen:
    still = frozen_paths(params, tuple(config.frozen))
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    count = sum(int(np.prod(leaf.shape)) for path, leaf in leaves if path_of(path) in still)
    rows["frozen"] = (
      f"{len(still)} tensors, {count:,} parameters; BatchNorms among them keep their statistics"
    )
  if config.ema_decay:
    rows["average"] = f"parameters' moving average, decay {config.ema_decay:g}; it is evaluated and kept"
  return rows


def _optimizer(optimizer: ml_collections.ConfigDict) -> str:
  nesterov = " (Nesterov)" if optimizer.nesterov else ""
  numbers = {"sgd": f"momentum {optimizer.momentum:g}{nesterov}"}.get(
    optimizer.name, f"b1 {optimizer.b1:g}, b2 {optimizer.b2:g}, eps {optimizer.eps:g}"
  )
  clip = f", gradient norm at most {optimizer.grad_clip:g}" if optimizer.grad_clip else ""
  return f"{optimizer.name}, rate {optimizer.learning_rate:g}, {numbers}{clip}"


def _schedule(optimizer: ml_collections.ConfigDict) -> str:
  schedule = optimizer.schedule
  parts = [schedule.name]
  if schedule.name == "poly":
    parts[0] += f" {schedule.power:g}"
  if schedule.name in ("poly", "cosine"):
    parts.append(f"to {schedule.end_value:g} at step {schedule.total_steps:,}")
  if schedule.name == "step":
    parts.append(f"x{schedule.factor:g} at {', '.join(map(str, schedule.boundaries))}")
  if schedule.warmup_steps:
    parts.append(
      f"{schedule.warmup_steps:,} warm-up steps from x{schedule.warmup_ratio:g} ({schedule.warmup})"
    )
  if schedule.every > 1:
    parts.append(f"changed every {schedule.every:,} steps")
  return ", ".join(parts)


def _decay(config: ml_collections.ConfigDict, params: Any) -> str:
  optimizer, still = config.optimizer, frozen_paths(params, tuple(config.frozen))
  how = "decoupled" if optimizer.name == "adamw" else "L2 in the gradient"
  counts = collections.Counter(
    (g.lr_mult, g.decay_mult) for path, g in parameter_groups(optimizer, params).items() if path not in still
  )
  groups = [f"{n} tensors at rate x{lr:g}, decay x{decay:g}" for (lr, decay), n in sorted(counts.items())]
  return f"{optimizer.weight_decay:g} {how}; " + "; ".join(groups)
