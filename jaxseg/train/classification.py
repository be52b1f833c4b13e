"""Image classification as a task (`jaxseg.train.experiment`): how encoders are pretrained on ImageNet.

The recipe is DeiT's (https://arxiv.org/abs/2012.12877): pictures are cropped, mirrored and changed by
RandAugment on the host, erased and mixed on the device, and learned with soft labels.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxseg import data
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.evaluation.canvases import spread_batch
from jaxseg.evaluation.classify import ClassificationReport, evaluate_classifier
from jaxseg.losses import soft_cross_entropy
from jaxseg.sharding import rows_to_read
from jaxseg.train.loss import LossFn
from jaxseg.types import AnyArray, Batch, Preprocess

_TOP = (1, 5)


def make_loss(config: ml_collections.ConfigDict, model: Any) -> LossFn:
  """(logits b k, soft labels b k) → cross entropy, and no parts."""
  del config, model

  def loss_fn(outputs: AnyArray, target: AnyArray) -> tuple[jax.Array, dict[str, jax.Array]]:
    return soft_cross_entropy(outputs, target), {}

  return loss_fn


def make_prepare(
  config: ml_collections.ConfigDict, *, preprocess: Preprocess, num_classes: int
) -> Callable[[Batch, jax.Array], Batch]:
  """(batch, key) → a normalised, erased and mixed batch whose labels are shares of the classes, b k."""
  from jaxseg.data import mixing

  settings = config.data

  def prepare(batch: Batch, key: jax.Array) -> Batch:
    image, label = mixing.augment(
      preprocess(batch["image"]),
      batch["label"],
      key,
      num_classes=num_classes,
      smoothing=config.loss.label_smoothing,
      mixup_alpha=settings.mixup_alpha,
      cutmix_alpha=settings.cutmix_alpha,
      switch_probability=settings.switch_probability,
      erase_probability=settings.erase_probability,
    )
    return {**batch, "image": image, "label": label}

  return prepare


def batch_shapes(config: ml_collections.ConfigDict, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Images, and a class for each."""
  return {
    "image": jax.ShapeDtypeStruct((batch_size, *config.data.crop_size, 3), np.uint8),
    "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
  }


def train_batches(
  config: ml_collections.ConfigDict,
  *,
  preprocess: Preprocess,
  start_step: int,
  mesh: Mesh,
  source: Source | None = None,
) -> Iterator[Batch]:
  """Rows of this process of `jaxseg.data.classifier_train_batches`."""
  del preprocess
  return data.classifier_train_batches(
    config.data,
    batch_size=config.batch_size,
    seed=config.seed,
    start_step=start_step,
    rows=rows_to_read(config.batch_size, mesh),
    source=source,
  )


def make_evaluator(
  model: Any,
  config: ml_collections.ConfigDict,
  *,
  info: DatasetInfo,
  preprocess: Preprocess,
  mesh: Mesh,
  source: Source | None = None,
) -> Callable[..., ClassificationReport]:
  """(variables, *, exact=True, progress=None) → top-1 and top-5 on `config.data.eval_split`, always exact."""
  del info
  batch_size = spread_batch(config.eval.batch_size, mesh)
  opened = [] if source is None else [source]

  def evaluate(
    variables: Mapping[str, Any], *, exact: bool = True, progress: Callable[[int], None] | None = None
  ) -> ClassificationReport:
    del exact
    if not opened:
      opened.append(data.open_split(config.data, config.data.eval_split))
    batches = data.classifier_eval_batches(
      config.data,
      config.data.eval_split,
      batch_size=batch_size,
      crop_share=config.eval.crop_share,
      rows=rows_to_read(batch_size, mesh),
      source=opened[0],
    )
    return evaluate_classifier(
      model, variables, batches, preprocess=preprocess, mesh=mesh, top=_TOP, progress=progress
    )

  return evaluate
