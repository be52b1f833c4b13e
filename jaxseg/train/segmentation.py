"""Semantic segmentation as a task (`jaxseg.train.experiment`): a label for each pixel."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxseg import data
from jaxseg.classes import label_type
from jaxseg.console import print_line
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.models import align_corners_of
from jaxseg.sharding import rows_to_read
from jaxseg.train import loss as loss_lib
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.loss import LossFn
from jaxseg.types import Batch, Preprocess

_LOOKED_AT = 100  # examples of somebody's own data, before training


def make_loss(config: ml_collections.ConfigDict, model: Any) -> LossFn:
  """See `jaxseg.train.make_loss`."""
  return loss_lib.make_loss(config.loss, align_corners=align_corners_of(model), multi_label=model.multi_label)


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
  kind = label_type(len(config.data.classes)) if config.data.get("multi_label", False) else np.uint8
  return {
    "image": jax.ShapeDtypeStruct((*pixels, config.data.get("channels", 3)), np.uint8),
    "label": jax.ShapeDtypeStruct(pixels, kind),
    "box": jax.ShapeDtypeStruct((batch_size, 4), np.int32),
  }


def train_batches(
  config: ml_collections.ConfigDict,
  *,
  preprocess: Preprocess,
  start_step: int,
  mesh: Mesh,
  source: Source | None = None,
) -> Iterator[Batch]:
  """Rows of this process of `jaxseg.data.train_batches`; says what is odd about the labels of own data."""
  source = data.open_split(config.data, config.data.train_split) if source is None else source
  if config.data.name == "folder" or ":" in config.data.name:
    for sentence in data.check_labels(source, data.dataset_info(config.data), samples=_LOOKED_AT):
      print_line(f"warning: {config.data.train_split}: {sentence}")
  return data.train_batches(
    config.data,
    source=source,
    batch_size=config.batch_size,
    seed=config.seed,
    start_step=start_step,
    rows=rows_to_read(config.batch_size, mesh),
    # Where a shrunken image does not reach: the mean colour is 0 once normalised.
    fill=tuple(round(value) for value in preprocess.mean),
  )


def make_evaluator(
  model: Any,
  config: ml_collections.ConfigDict,
  *,
  info: DatasetInfo,
  preprocess: Preprocess,
  mesh: Mesh,
  source: Source | None = None,
) -> Evaluator:
  """Scores on `config.data.eval_split`, and a picture of its first images."""
  evaluator = Evaluator(model, config, info=info, preprocess=preprocess, mesh=mesh, source=source)
  _ = evaluator.split  # what cannot be evaluated is found before training, not at the first evaluation
  return evaluator
