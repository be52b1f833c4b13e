"""Key maps of ResNets: torchvision's and mmsegmentation's, as ImageNet files and inside whole models.

torchvision: https://github.com/pytorch/vision (BSD-3-Clause); mmsegmentation's "v1c" has the
same names below a deeper stem. Names were written from published state dicts.
"""

import re
from collections.abc import Callable
from typing import Any

from jaxseg.errors import UserError
from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Shapes
from jaxseg.pretrained.records import MMSEG_LICENCE, MMSEG_SOURCE, Record, default_record
from jaxseg.pretrained.shapes import count, first, vote
from jaxseg.types import Preprocess

_UNIT = re.compile(r"encoder/stage([1-4])_block(\d+)/(reduce|spatial|expand|shortcut)/(conv|norm)")
_STEM = re.compile(r"encoder/stem(\d?)/(conv|norm)")
_IN_UNIT = {
  ("reduce", "conv"): "conv1",
  ("reduce", "norm"): "bn1",
  ("spatial", "conv"): "conv2",
  ("spatial", "norm"): "bn2",
  ("expand", "conv"): "conv3",
  ("expand", "norm"): "bn3",
  ("shortcut", "conv"): "downsample.0",
  ("shortcut", "norm"): "downsample.1",
}
_SIZES = {6: ("resnet50", (3, 4, 6, 3)), 23: ("resnet101", (3, 4, 23, 3))}
TORCHVISION_LICENCE = "BSD-3-Clause (pytorch/vision)"
TORCHVISION_SOURCE = "https://github.com/pytorch/vision"
# torchvision writes its statistics for 0..1.
TORCHVISION = Preprocess(
  tuple(255 * mean for mean in (0.485, 0.456, 0.406)), tuple(255 * std for std in (0.229, 0.224, 0.225))
)
TORCHVISION_RECORD = default_record(TORCHVISION, TORCHVISION_LICENCE, TORCHVISION_SOURCE, segments=False)
# Names of an encoder below its prefix, as a regex.
NAMES = r"(stem\.\d|conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\..*"


def encoder_name(path: str) -> str | None:
  """The name of one of the encoder's leaves below the layout's prefix, or None."""
  module, _, leaf = path.rpartition("/")
  kind = LEAVES.get(leaf, leaf)
  if unit := _UNIT.fullmatch(module):
    return f"layer{unit[1]}.{unit[2]}.{_IN_UNIT[unit[3], unit[4]]}.{kind}"
  if stem := _STEM.fullmatch(module):
    if not stem[1]:
      return f"{'conv1' if stem[2] == 'conv' else 'bn1'}.{kind}"
    # Convolution, BatchNorm, ReLU, and so on: every third is a convolution.
    return f"stem.{3 * int(stem[1]) + (stem[2] == 'norm')}.{kind}"
  return None


def variant(shapes: Shapes, prefix: str) -> tuple[str, dict[str, Any]]:
  """The catalog's nearest encoder, and the fields in which the file differs from it.

  Args:
    shapes: of the file.
    prefix: regex before the encoder's names.
  """
  inner = rf"{prefix}layer[1-4]\.\d+\.conv"
  if any(re.match(rf"{inner}2\.", name) for name in shapes) and not any(
    re.match(rf"{inner}3\.", name) for name in shapes
  ):
    raise UserError("it is a ResNet of basic blocks (ResNet-18 or -34), which no encoder here has")
  sizes = tuple(count(shapes, rf"{prefix}layer{i}\.(\d+)\.") for i in range(1, 5))
  name, usual = _SIZES.get(sizes[2], _SIZES[6])
  fields: dict[str, Any] = {} if sizes == usual else {"stage_sizes": sizes}
  if any(re.match(rf"{prefix}stem\.", shape) for shape in shapes):
    fields["stem"] = "v1c"
  width = vote(shapes, rf"{prefix}layer1\.\d+\.bn[12]\.\w+", 64)
  if width != 64:
    fields["width"] = width
  return name, fields


def _publish(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  return f"fc.{LEAVES.get(leaf, leaf)}" if module == "head" else encoder_name(path)


def _detect(shapes: Shapes) -> Detected:
  name, fields = variant(shapes, "")
  return Detected(name, first(shapes, r"fc\.weight"), encoder=fields)


def _layout(name: str, stem: str, record: Callable[[int | None], Record]) -> Layout:
  return Layout(
    family="resnet",
    name=name,
    archs=("resnet",),
    publish=_publish,
    pattern=rf"({stem}|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])|fc)\..*",
    detect=_detect,
    record=record,
  )


TORCHVISION_BACKBONE = _layout("torchvision_backbone", r"conv1|bn1", TORCHVISION_RECORD)
_OF_MMSEG = default_record(Preprocess(), MMSEG_LICENCE, MMSEG_SOURCE, segments=False)
MMSEG_BACKBONE = _layout("mmseg_backbone", r"stem\.\d", _OF_MMSEG)
