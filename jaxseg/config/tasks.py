"""What a task's config may hold beyond one key after the other, and what the recipe card says of it.

How a task is trained and evaluated is in `jaxseg.train.experiment`; here is what needs no device.
"""

import inspect
from collections.abc import Collection
from typing import Any

import ml_collections

from jaxseg import models
from jaxseg.config.keys import name_of
from jaxseg.config.rule import make_inference_rule
from jaxseg.config.values import nearest
from jaxseg.data import DataError
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.losses import LOSSES
from jaxseg.models import align_corners_of
from jaxseg.types import IGNORE_LABEL

# Settings of losses that have words of their own on the card, or a row.
_SHARED_SETTINGS = (
  "normalize_by",
  "class_weights",
  "ignore_label",
  "label_smoothing",
  "align_corners",
  "multi_label",
)
# Data sets whose pixels may have several classes.
_MULTI_LABEL_DATA = ("folder",)
_MIN_SIDE = 32  # of what a network sees


def archs(config: ml_collections.ConfigDict) -> Collection[str]:
  """The names that `config.model.arch` may have: the published systems, or the encoders as classifiers."""
  return ENCODERS if name_of(config) == "classification" else models.SYSTEMS


def check(config: ml_collections.ConfigDict) -> None:
  """Values of the task against each other; nothing is read.

  Raises:
    UserError: the key, its value, what is expected.
  """
  if min(config.data.crop_size) < _MIN_SIDE:
    raise UserError(
      f"config.data.crop_size is {tuple(config.data.crop_size)}; models need at least {_MIN_SIDE} pixels a"
      " side"
    )
  (_check_classification if name_of(config) == "classification" else _check_segmentation)(config)


def card_rows(config: ml_collections.ConfigDict, model: Any) -> dict[str, str]:
  """Name → text of the task's rows of the recipe card; one is "augmentation"."""
  return (_classification_rows if name_of(config) == "classification" else _segmentation_rows)(config, model)


def _check_segmentation(config: ml_collections.ConfigDict) -> None:
  low, high = config.data.scale_range
  if not 0 < low <= high:
    raise UserError(f"config.data.scale_range is {(low, high)}; expected (low, high) with 0 < low <= high")
  from jaxseg.data.transforms import make_rule  # brings OpenCV

  names = ("crop_size", "scale_range", "scale_step", "flip", "resize", "cat_max_ratio", "pad")
  try:
    make_rule(**{name: config.data[name] for name in names if name in config.data})
  except DataError as error:
    raise UserError(f"config.{error}") from None
  make_inference_rule(config.eval)
  _check_loss(config.loss)
  _check_multi_label(config)
  _check_channels(config)
  _check_test_sizes(config)
  _check_label_map(config.data)


def _check_loss(loss: ml_collections.ConfigDict) -> None:
  names = [name.strip() for name in loss.name.split("+")]
  for name in names:
    if name not in LOSSES:
      raise UserError(f"config.loss.name is {loss.name!r}: there is no loss {name!r}{nearest(name, LOSSES)}")
  if loss.get("factors") and len(loss.factors) != len(names):
    raise UserError(
      f"config.loss.factors has {len(loss.factors)} values for {len(names)} losses ({', '.join(names)});"
      " give one for each, or () for 1 each"
    )
  weights = loss.get("class_weights")
  if weights and not any(weights):
    raise UserError("config.loss.class_weights is 0 for every class, so that nothing is learned; () is none")
  if loss.get("ignore_label", IGNORE_LABEL) != IGNORE_LABEL:
    raise UserError(
      f"config.loss.ignore_label is {loss.ignore_label}, but pixels without a label are {IGNORE_LABEL} in"
      f" every data set; set it to {IGNORE_LABEL}, and map ids with config.data.label_map"
    )


def _check_channels(config: ml_collections.ConfigDict) -> None:
  """Channels of images, their means, and what is for RGB alone."""
  channels = config.data.get("channels", 3)
  for key in ("mean", "std"):
    if len(config.preprocess[key]) != channels:
      raise UserError(
        f"config.preprocess.{key} has {len(config.preprocess[key])} values for images of {channels} channels"
        f" (config.data.channels); give one for each, in 0 to 255"
      )
  if channels == 3:
    return
  if config.data.name != "folder":
    raise UserError(
      f"config.data.channels is {channels}, but {config.data.name!r} has RGB images; it is for folder"
    )
  for key, value, usual in (
    ("data.color", config.data.color, "none"),
    ("preprocess.channel_order", config.preprocess.channel_order, "rgb"),
  ):
    if value != usual:
      raise UserError(
        f"config.{key} is {value!r}, which is for RGB images; with config.data.channels={channels} set it to"
        f" {usual!r}"
      )


def _check_multi_label(config: ml_collections.ConfigDict) -> None:
  """What a pixel of several classes excludes; the losses' sentence comes from `train.make_loss`."""
  data = config.data
  if not data.get("multi_label", False):
    if config.loss.name == "binary_cross_entropy" and len(data.get("classes", ())) == 1:
      raise UserError(
        "config.data.classes has one class, which is on every labelled pixel; for an object and what is none"
        " set config.data.multi_label=true"
      )
    return
  if data.name not in _MULTI_LABEL_DATA:
    raise UserError(
      f"config.data.multi_label is true, but {data.name!r} has one class a pixel; it is for"
      f" {' and '.join(_MULTI_LABEL_DATA)}"
    )
  for key, value, usual in (
    ("data.cat_max_ratio", data.cat_max_ratio, data.cat_max_ratio == 1.0),
    ("eval.class_map", config.eval.get("class_map", ()), not config.eval.get("class_map", ())),
    ("loss.class_weights", "auto", config.loss.get("class_weights") != "auto"),
  ):
    if not usual:
      raise UserError(
        f"config.{key} is {value}, which is for pixels of one class; with data.multi_label leave it alone"
      )
  names = [name.strip() for name in config.loss.name.split("+")]
  if "focal" in names and config.loss.activation != "sigmoid":
    raise UserError("config.loss.activation is 'softmax'; with data.multi_label it has to be 'sigmoid'")


def _check_test_sizes(config: ml_collections.ConfigDict) -> None:
  rule = config.eval
  if rule.get("mode") == "slide" and min(rule.crop_size) < _MIN_SIDE:
    raise UserError(
      f"config.eval.crop_size is {tuple(rule.crop_size)}; a window needs at least {_MIN_SIDE} pixels a side"
    )
  sizes = {"config.eval.resize": rule.get("resize", ())}
  if config.data.name == "synthetic" and not rule.get("resize"):
    sizes = {"config.data.image_size": config.data.image_size}
  for key, size in sizes.items():
    smallest = min(rule.get("scales", (1.0,)))
    if size and min(size) * smallest < _MIN_SIDE:
      raise UserError(
        f"{key} {tuple(size)} at the scale {smallest:g} of config.eval.scales is below {_MIN_SIDE} pixels a"
        " side, which no model takes"
      )


def _check_label_map(data: ml_collections.ConfigDict) -> None:
  pairs = data.get("label_map", ())
  ids = [pair[0] for pair in pairs]
  twice = sorted({i for i in ids if ids.count(i) > 1})
  if twice:
    raise UserError(f"config.data.label_map has the id {twice[0]} twice; give one class for each id")
  count = len(data.get("classes", ()))
  for raw, label in pairs:
    if label != IGNORE_LABEL and count and label >= count and not data.get("multi_label", False):
      raise UserError(
        f"config.data.label_map takes id {raw} to class {label}, but config.data.classes has {count}"
        f" (0 to {count - 1}); {IGNORE_LABEL} ignores an id"
      )
  classes = data.get("classes", ())
  for name in classes:
    if not name.strip() or list(classes).count(name) > 1:
      raise UserError(f"config.data.classes holds {name!r} {'twice' if name.strip() else 'as a name'}")


def _check_classification(config: ml_collections.ConfigDict) -> None:
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


def _segmentation_rows(config: ml_collections.ConfigDict, model: Any) -> dict[str, str]:
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


def _classification_rows(config: ml_collections.ConfigDict, model: Any) -> dict[str, str]:
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
  if any("normalize_by" in _loss_settings(name) for name in names):
    parts.append(share.get(loss.normalize_by, loss.normalize_by))
  if loss.class_weights == "auto":
    parts.append("class weights by their pixels")
  elif loss.class_weights:
    parts.append(f"class weights {min(loss.class_weights):.4g} to {max(loss.class_weights):.4g}")
  if loss.label_smoothing:
    parts.append(f"label smoothing {loss.label_smoothing:g}")
  own = {key: loss.get(key, default) for name in names for key, default in _loss_settings(name).items()}
  parts += [f"{key.replace('_', ' ')} {own[key]}" for key in own if key not in _SHARED_SETTINGS]
  parts += [f"{name} x{weight:g}" for name, weight in loss.weights.items() if len(loss.weights) > 1]
  return ", ".join(parts)


def _loss_settings(name: str) -> dict[str, Any]:
  """Keyword → default of a loss."""
  parameters = inspect.signature(LOSSES[name]).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
