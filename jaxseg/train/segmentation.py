"""Semantic segmentation as a task (`jaxseg.train.tasks`): a label for each pixel."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxseg import data, models
from jaxseg.data import DataError
from jaxseg.data.source import DatasetInfo
from jaxseg.errors import UserError
from jaxseg.models import align_corners_of
from jaxseg.sharding import rows_to_read
from jaxseg.train import loss as loss_lib
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.loss import LossFn, loss_settings
from jaxseg.train.rule import make_inference_rule
from jaxseg.types import Batch, Preprocess

# Settings of losses that have words of their own on the card, or a row.
_SHARED_SETTINGS = ("normalize_by", "class_weights", "ignore_label", "label_smoothing")


def archs() -> Collection[str]:
  """The published systems."""
  return models.SYSTEMS


def check(config: ml_collections.ConfigDict) -> None:
  """The data's and the test-time rule's values; nothing is read.

  Raises:
    UserError: the key, its value, what is expected.
  """
  low, high = config.data.scale_range
  if not 0 < low <= high:
    raise UserError(f"config.data.scale_range is {(low, high)}; expected (low, high) with 0 < low <= high")
  from jaxseg.data.transforms import make_rule  # brings OpenCV

  names = ("crop_size", "scale_range", "scale_step", "flip", "resize", "cat_max_ratio", "pad")
  try:
    make_rule(**{name: config.data[name] for name in names})
  except DataError as error:
    raise UserError(f"config.{error}") from None
  make_inference_rule(config.eval)


def make_loss(config: ml_collections.ConfigDict, model: Any) -> LossFn:
  """See `jaxseg.train.make_loss`."""
  return loss_lib.make_loss(config.loss, align_corners=align_corners_of(model))


def make_prepare(
  config: ml_collections.ConfigDict, *, preprocess: Preprocess, num_classes: int
) -> Callable[[Batch, jax.Array], Batch]:
  """(batch, key) → batch with a normalised image: colour distortion and mean / std run on the device."""
  del num_classes

  def prepare(batch: Batch, key: jax.Array) -> Batch:
    image = batch["image"]
    if config.data.color == "photometric":
      image = data.distort(image, key)
    # Padding is 0 whatever the colours of the picture became.
    image = data.zero_padding(preprocess(image), batch["box"])
    return {**batch, "image": image, "label": batch["label"].astype(np.int32)}  # labels travel as uint8

  return prepare


def batch_shapes(config: ml_collections.ConfigDict, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Images, labels, and the boxes that hold no padding."""
  pixels = (batch_size, *config.data.crop_size)
  return {
    "image": jax.ShapeDtypeStruct((*pixels, 3), np.uint8),
    "label": jax.ShapeDtypeStruct(pixels, np.uint8),
    "box": jax.ShapeDtypeStruct((batch_size, 4), np.int32),
  }


def train_batches(
  config: ml_collections.ConfigDict,
  *,
  preprocess: Preprocess,
  start_step: int,
  mesh: Mesh,
  source: Any = None,
) -> Iterator[Batch]:
  """Rows of this process of `jaxseg.data.train_batches`."""
  return data.train_batches(
    config.data,
    batch_size=config.batch_size,
    seed=config.seed,
    start_step=start_step,
    rows=rows_to_read(config.batch_size, mesh),
    # Where a shrunken image does not reach: the mean colour is 0 once normalised.
    fill=tuple(round(value) for value in preprocess.mean),
    source=source,
  )


def make_evaluator(
  model: Any,
  config: ml_collections.ConfigDict,
  *,
  info: DatasetInfo,
  preprocess: Preprocess,
  mesh: Mesh,
  source: Any = None,
) -> Evaluator:
  """Scores on `config.data.eval_split`, and a picture of its first images."""
  return Evaluator(model, config, info=info, preprocess=preprocess, mesh=mesh, source=source)


def card_rows(config: ml_collections.ConfigDict, model: Any) -> dict[str, str]:
  """Augmentation, labels, resize, test-time rule and loss."""
  corners = align_corners_of(model, given=config.loss.align_corners)
  return {
    "augmentation": _augmentation(config.data),
    "labels": f"nearest neighbour; {config.loss.ignore_label} is ignored before loss and metrics",
    "logits": "bilinear to the label's size, no antialiasing, "
    + ("corners aligned" if corners else "half-pixel centres"),
    "evaluation": make_inference_rule(config.eval).text(),
    "loss": _loss(config.loss),
  }


def _augmentation(data: ml_collections.ConfigDict) -> str:
  low, high = data.scale_range
  step = f" in steps of {data.scale_step:g}" if data.scale_step else ""
  base = f" of the fit into {data.resize[0]}x{data.resize[1]}" if data.resize else ""
  height, width = data.crop_size
  mixed = f" with no class at {data.cat_max_ratio:g} or more" if data.cat_max_ratio < 1 else ""
  return (
    f"scale {low:g} to {high:g}{step}{base}, crop {height}x{width}{mixed}, flip {data.flip:g},"
    f" padded {data.pad.replace('_', ' ')}, colour {data.color}"
  )


def _loss(loss: ml_collections.ConfigDict) -> str:
  share = {
    "valid": "mean over labelled pixels",
    "all": "mean over all pixels",
    "weights": "mean by class weight",
    "kept": "mean over the kept pixels",
  }
  names = [name.strip() for name in loss.name.split("+")]
  factors = tuple(loss.factors) or (1.0,) * len(names)
  terms = [f"{f:g} x {n}" if f != 1 else n for n, f in zip(names, factors, strict=True)]
  parts = [" + ".join(terms).replace("_", " ")]
  if any("normalize_by" in loss_settings(name) for name in names):
    parts.append(share.get(loss.normalize_by, loss.normalize_by))
  if loss.class_weights:
    parts.append(f"class weights {min(loss.class_weights):.4g} to {max(loss.class_weights):.4g}")
  if loss.label_smoothing:
    parts.append(f"label smoothing {loss.label_smoothing:g}")
  own = {key: loss.get(key, default) for name in names for key, default in loss_settings(name).items()}
  parts += [f"{key.replace('_', ' ')} {own[key]}" for key in own if key not in _SHARED_SETTINGS]
  parts += [f"{name} x{weight:g}" for name, weight in loss.weights.items() if len(loss.weights) > 1]
  return ", ".join(parts)
