"""The recipe card: what is about to run, in words that can be held against a paper."""

import collections
import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxseg.config import tasks
from jaxseg.config.keys import name_of
from jaxseg.errors import printable
from jaxseg.macs import count_macs
from jaxseg.models import first_whole_stage


def recipe_card(
  config: ml_collections.ConfigDict,
  *,
  model: nn.Module,
  params: Any,
  num_classes: int,
  groups: Mapping[str, Any],
  frozen: Collection[str] = (),
  mesh: Mesh | AbstractMesh | None = None,
  lengths: Mapping[str, int] | None = None,
  start_step: int = 0,
  loaded: str = "",
  more: Mapping[str, str] | None = None,
) -> str:
  """The card as text, one fact a line.

  Args:
    config: of the run.
    model: what is trained.
    params: the model's parameters, or their shapes.
    num_classes: of the model.
    groups: path of each parameter → its `jaxseg.train.optimizer.Group`.
    frozen: paths of the parameters that are not trained.
    mesh: devices of the run; None before they are known.
    lengths: split → number of examples; None before the data are opened.
    start_step: step that the run goes on from.
    loaded: where the weights come from, what was loaded and what is new, once `init_from` was read.
    more: further rows, name → text.
  """
  about = tasks.card_rows(config, model)
  examples = None if lengths is None else lengths[config.data.train_split]
  rows = {
    "model": _model(config, model, params, num_classes),
    "weights from": weights_row(config, start_step=start_step, loaded=loaded),
    "data": _data(config, lengths),
    "batch": _batch(config, mesh, examples),
    "steps": _steps(config, start_step, examples),
    "augmentation": about.pop("augmentation"),
    "input": _input(config.preprocess),
    **about,
    "optimizer": _optimizer(config.optimizer),
    "schedule": _schedule(config.optimizer),
    "decay": _decay(config, groups, frozen),
    **_kept(config, params, frozen),
    "precision": f"computes in {config.dtype}; parameters, statistics and loss in float32",
    "mesh": _mesh(config, mesh),
    **({} if mesh is None else rows_split(config, model, mesh)),
    **(more or {}),
  }
  width = max(map(len, rows))
  return "\n".join(f"{name:>{width}}  {printable(text)}" for name, text in rows.items())


def weights_row(config: ml_collections.ConfigDict, *, start_step: int = 0, loaded: str = "") -> str:
  """Where the weights of a run come from, with a warning where a recipe's do not."""
  if start_step:
    return f"the workdir's checkpoint of step {start_step}"
  if config.init_from:
    return loaded or f"{config.init_from}; new: {', '.join(config.init_keep) or 'nothing'}"
  # A recipe that keeps a whole decoder fresh is one that starts from a trained encoder.
  starts = name_of(config) == "segmentation" and any(re.match(r".*decoder/\.\*", k) for k in config.init_keep)
  if starts:
    return (
      "random. WARNING: the published recipe starts from an encoder trained on ImageNet; set"
      " config.init_from to its weights"
    )
  return "random"


def _data(config: ml_collections.ConfigDict, lengths: Mapping[str, int] | None) -> str:
  if lengths is None:
    splits = dict.fromkeys((config.data.train_split, config.data.eval_split))
    return f"{', '.join(splits)} ({config.data.name}), not opened yet"
  return ", ".join(f"{split} {n}" for split, n in lengths.items()) + f" ({config.data.name})"


def _mesh(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh | None) -> str:
  if mesh is None:
    axes = ", ".join(f"{axis} {config.mesh[axis]}" for axis in ("data", "fsdp", "spatial"))
    return f"{axes} on {config.mesh.devices or 'all'} devices"
  axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  if isinstance(mesh, AbstractMesh):
    return axes
  kind = mesh.devices.flat[0].device_kind
  return f"{axes} on {mesh.devices.size} {kind}, {jax.process_count()} process(es)"


def _model(config: ml_collections.ConfigDict, model: nn.Module, params: Any, num_classes: int) -> str:
  height, width = config.data.crop_size
  macs = count_macs(model, (height, width)) / 1e9
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
  return (
    f"{config.model.arch}, {num_classes} classes, {count:,} parameters, {macs:.3g} GMACs at {height}x{width}"
  )


def _batch(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh | None, examples: int | None) -> str:
  parts = [f"{config.batch_size} images a step"]
  if mesh is not None:
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    parts[0] += f" ({config.batch_size // groups} a device group)"
  if config.accumulate > 1:
    parts[0] += f" in {config.accumulate} micro-batches, gradients averaged"
  if examples is not None:
    parts.append(f"{examples / config.batch_size:.4g} steps an epoch")
  return ", ".join(parts)


def rows_split(
  config: ml_collections.ConfigDict, model: nn.Module, mesh: Mesh | AbstractMesh
) -> dict[str, str]:
  """A row about the rows of an image, where several devices share them."""
  parts = mesh.shape["spatial"]
  if parts == 1:
    return {}
  first = first_whole_stage(model, tuple(config.data.crop_size), spatial=parts)
  until = "in all stages" if first is None else f"up to {first}, which every device has whole"
  return {"rows": f"of an image over {parts} devices {until}"}


def _steps(config: ml_collections.ConfigDict, start: int, examples: int | None) -> str:
  resumed = f", from step {start}" if start else ""
  epochs = (
    "" if examples is None else f" ({config.total_steps * config.batch_size / max(examples, 1):.4g} epochs)"
  )
  return f"{config.total_steps:,}{epochs}{resumed}"


def _input(preprocess: ml_collections.ConfigDict) -> str:
  mean, std = (" ".join(f"{value:g}" for value in preprocess[key]) for key in ("mean", "std"))
  return f"{preprocess.channel_order}, minus ({mean}), over ({std})"


def _kept(config: ml_collections.ConfigDict, params: Any, frozen: Collection[str]) -> dict[str, str]:
  """Rows for what few recipes have: frozen parameters, a moving average."""
  rows = {}
  if config.frozen:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    count = sum(int(np.prod(paths[path].shape)) for path in frozen)
    rows["frozen"] = (
      f"{len(frozen)} tensors, {count:,} parameters; BatchNorms among them keep their statistics"
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


def _decay(config: ml_collections.ConfigDict, groups: Mapping[str, Any], frozen: Collection[str]) -> str:
  how = "decoupled" if config.optimizer.name == "adamw" else "L2 in the gradient"
  counts = collections.Counter((g.lr_mult, g.decay_mult) for path, g in groups.items() if path not in frozen)
  rows = [f"{n} tensors at rate x{lr:g}, decay x{decay:g}" for (lr, decay), n in sorted(counts.items())]
  return f"{config.optimizer.weight_decay:g} {how}; " + "; ".join(rows)
