"""Image classification as a task (`jaxseg.train.tasks`): how encoders are pretrained on ImageNet.

The recipe is DeiT's (https://arxiv.org/abs/2012.12877): pictures are cropped, mirrored and changed by
RandAugment on the host, erased and mixed on the device, and learned with soft labels.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from jaxseg import data
from jaxseg.console import print_line as say
from jaxseg.data import DataError
from jaxseg.data.source import DatasetInfo
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.evaluation.classify import ClassificationReport, evaluate_classifier
from jaxseg.losses import soft_cross_entropy
from jaxseg.sharding import rows_to_read
from jaxseg.train.loss import LossFn
from jaxseg.types import AnyArray, Batch, Preprocess

_TOP = (1, 5)


def archs() -> Collection[str]:
  """The encoders, which as models of their own are image classifiers."""
  return ENCODERS


def check(config: ml_collections.ConfigDict) -> None:
  """The data's values; nothing is read.

  Raises:
    UserError: the key, its value, what is expected.
  """
  from jaxseg.data.classification_batches import check_settings  # brings Grain

  try:
    check_settings(config.data)
  except DataError as error:
    raise UserError(f"config.{error}") from None
  if config.log.panel_every_steps:
    raise UserError(
      f"config.log.panel_every_steps is {config.log.panel_every_steps}, but an image classifier draws no"
      " panels; expected 0"
    )
  if config.eval.crop_share <= 0:
    raise UserError("config.eval.crop_share is 0.0; expected above 0, up to 1 for no margin")


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
  source: Any = None,
) -> Iterator[Batch]:
  """Rows of this process of `jaxseg.data.classifier_train_batches`."""
  del preprocess, source
  return data.classifier_train_batches(
    config.data,
    batch_size=config.batch_size,
    seed=config.seed,
    start_step=start_step,
    rows=rows_to_read(config.batch_size, mesh),
  )


def make_evaluator(
  model: Any,
  config: ml_collections.ConfigDict,
  *,
  info: DatasetInfo,
  preprocess: Preprocess,
  mesh: Mesh,
  source: Any = None,
) -> Callable[..., ClassificationReport]:
  """(variables, *, progress=None) → top-1 and top-5 on `config.data.eval_split`."""
  del info, source

  def evaluate(
    variables: Mapping[str, Any], *, progress: Callable[[int], None] | None = None
  ) -> ClassificationReport:
    batches = data.classifier_eval_batches(
      config.data,
      config.data.eval_split,
      batch_size=config.eval.batch_size,
      crop_share=config.eval.crop_share,
      rows=rows_to_read(config.eval.batch_size, mesh),
    )
    return evaluate_classifier(
      model, variables, batches, preprocess=preprocess, mesh=mesh, top=_TOP, progress=progress
    )

  return evaluate


def card_rows(config: ml_collections.ConfigDict, model: Any) -> dict[str, str]:
  """Augmentation, mixing, evaluation and loss."""
  del model
  settings = config.data
  area, aspect = settings.crop_area, settings.crop_aspect
  layers = settings.randaugment_layers
  changed = (
    f"RandAugment of {layers} at {settings.randaugment_magnitude:g} +- {settings.randaugment_std:g}"
    if layers
    else "no RandAugment"
  )
  mixing = [
    f"{name} {alpha:g}"
    for name, alpha in (("mixup", settings.mixup_alpha), ("cutmix", settings.cutmix_alpha))
    if alpha
  ]
  if len(mixing) == 2:
    mixing.append(f"cutmix in {settings.switch_probability:g} of the steps")
  return {
    "augmentation": f"crop of {area[0]:g} to {area[1]:g} of the area, aspect {aspect[0]:.3g} to"
    f" {aspect[1]:.3g}, {settings.interpolation} to {settings.crop_size[0]}, flip {settings.flip:g},"
    f" {changed}, erased {settings.erase_probability:g}",
    "mixing": ", ".join(mixing) + ", one draw for the whole batch" if mixing else "none",
    "evaluation": f"top-1 and top-5 of the middle {config.eval.crop_share:g} of the short side",
    "loss": f"cross entropy with soft labels, label smoothing {config.loss.label_smoothing:g}",
  }


def evaluate(
  subject: Any, config: ml_collections.ConfigDict, *, output: epath.PathLike, info: DatasetInfo, mesh: Mesh
) -> ClassificationReport:
  """What eval.py does with a classifier: prints top-1 and top-5, and writes `report.json` to `output`.

  Args:
    subject: a `jaxseg.train.evaluating.Subject`.
    config: whose data and crop.
    output: a folder, made when it does not exist.
    info: of the data set.
    mesh: where to run.

  Raises:
    UserError: the data cannot be read, or the folder cannot be written.
  """
  count = len(data.open_split(config.data, config.data.eval_split))
  first = jax.process_index() == 0
  scores = make_evaluator(subject.model, config, info=info, preprocess=subject.preprocess, mesh=mesh)
  with tqdm(total=count, unit="image", disable=None if first else True) as bar:
    report = scores(subject.variables, progress=lambda images: bar.update(images - bar.n))
  if not first:
    return report
  facts = {
    "source": subject.name,
    "step": subject.step,
    "data": config.data.name,
    "split": config.data.eval_split,
    "images": report.images,
    "crop_share": config.eval.crop_share,
  }
  directory = epath.Path(output)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps({**facts, **report.scalars()}, indent=1) + "\n")
  except OSError as error:
    raise UserError(
      f"{str(output)!r} cannot be written ({error.strerror or error}); choose another --output"
    ) from None
  say("  ".join(f"{name} {value:.4f}" for name, value in report.scalars().items()))
  say(f"{report.images} images of {config.data.name} {config.data.eval_split}")
  say(f"report in {output}")
  return report
