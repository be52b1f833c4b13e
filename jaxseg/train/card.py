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
from jaxseg.models import align_corners_of
from jaxseg.train.optimizer import parameter_groups


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
  rows = {
    "model": _model(config, model, params, num_classes),
    "data": ", ".join(f"{split} {n}" for split, n in lengths.items()) + f" ({config.data.name})",
    "batch": _batch(config, mesh, lengths[config.data.train_split]),
    "steps": _steps(config, start_step, lengths[config.data.train_split]),
    "augmentation": _augmentation(config.data),
    "input": _input(config.preprocess),
    "labels": f"nearest neighbour; {config.loss.ignore_label} is ignored before loss and metrics",
    "logits": "bilinear to the label's size, no antialiasing, "
    + ("corners aligned" if align_corners_of(model, config.loss.align_corners) else "half-pixel centres"),
    "loss": _loss(config.loss),
    "optimizer": _optimizer(config.optimizer),
    "schedule": _schedule(config.optimizer),
    "decay": _decay(config.optimizer, params),
    "precision": f"computes in {config.dtype}; parameters, statistics and loss in float32",
    "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    + f" on {mesh.devices.size} {mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es)",
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
  return (
    f"{config.batch_size} images a step ({config.batch_size // groups} a device group),"
    f" {examples / config.batch_size:.4g} steps an epoch"
  )


def _steps(config: ml_collections.ConfigDict, start: int, examples: int) -> str:
  epochs = config.total_steps * config.batch_size / max(examples, 1)
  resumed = f", from step {start}" if start else ""
  return f"{config.total_steps:,} ({epochs:.4g} epochs){resumed}"


def _augmentation(data: ml_collections.ConfigDict) -> str:
  low, high = data.scale_range
  step = f" in steps of {data.scale_step:g}" if data.scale_step else ""
  height, width = data.crop_size
  return f"scale {low:g} to {high:g}{step}, crop {height}x{width}, flip {data.flip:g}, colour {data.color}"


def _input(preprocess: ml_collections.ConfigDict) -> str:
  mean, std = (" ".join(f"{value:g}" for value in preprocess[key]) for key in ("mean", "std"))
  return f"{preprocess.channel_order}, minus ({mean}), over ({std})"


def _loss(loss: ml_collections.ConfigDict) -> str:
  share = {
    "valid": "mean over labelled pixels",
    "all": "mean over all pixels",
    "weights": "mean by class weight",
  }
  parts = [loss.name.replace("_", " "), share.get(loss.normalize_by, loss.normalize_by)]
  if loss.class_weights:
    parts.append(f"class weights {min(loss.class_weights):.4g} to {max(loss.class_weights):.4g}")
  if loss.label_smoothing:
    parts.append(f"label smoothing {loss.label_smoothing:g}")
  parts += [f"{name} x{weight:g}" for name, weight in loss.weights.items() if len(loss.weights) > 1]
  return ", ".join(parts)


def _optimizer(optimizer: ml_collections.ConfigDict) -> str:
  numbers = {"sgd": f"momentum {optimizer.momentum:g}"}.get(
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
  return ", ".join(parts)


def _decay(optimizer: ml_collections.ConfigDict, params: Any) -> str:
  how = "decoupled" if optimizer.name == "adamw" else "L2 in the gradient"
  counts = collections.Counter(
    (g.lr_mult, g.decay_mult) for g in parameter_groups(optimizer, params).values()
  )
  groups = [f"{n} tensors at rate x{lr:g}, decay x{decay:g}" for (lr, decay), n in sorted(counts.items())]
  return f"{optimizer.weight_decay:g} {how}; " + "; ".join(groups)
