"""Key maps of DeepLab on MobileNetV2: TensorFlow's as exported for inference (TF-Lite), and mmsegmentation's.

mmsegmentation's heads have the names of its DeepLabs on ResNet. TensorFlow's:
https://github.com/tensorflow/models (Apache-2.0). The arrays have BatchNorm folded into
them; kernels are (out, rows, columns, in), depthwise ones (1, rows, columns, channels).
"""

import dataclasses
import re

import numpy as np

from jaxseg.pretrained import deeplab
from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Shape, Shapes
from jaxseg.pretrained.records import default_record
from jaxseg.pretrained.shapes import count, first, vote
from jaxseg.types import Preprocess

_BLOCK = re.compile(r"encoder/block(\d+)/(expand|depthwise|project)/conv")
_OTHERS = {
  "encoder/stem/conv": "MobilenetV2/Conv",
  "decoder/aspp/image_pool/conv": "image_pooling",
  "decoder/aspp/branch0/conv": "aspp0",
  "decoder/aspp/fuse": "concat_projection",
  "decoder/classifier": "logits/semantic",
}
# Pixels in -1..1.
_PREPROCESS = Preprocess((127.5,) * 3, (127.5,) * 3)
_DEPTHS = (1, 2, 3, 4, 3, 3, 1)


def _publish(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  if leaf not in ("kernel", "bias"):
    return None
  if block := _BLOCK.fullmatch(module):
    number = f"_{block[1]}" if int(block[1]) else ""
    place = f"MobilenetV2/expanded_conv{number}/{block[2]}"
  else:
    place = _OTHERS.get(module)
  if place is None:
    return None
  if place.endswith("/depthwise"):
    return f"{place}/depthwise_{'weights' if leaf == 'kernel' else 'bias'}"
  return f"{place}/{'weights' if leaf == 'kernel' else 'Conv2D_bias'}"


def _detect(shapes: Shapes) -> Detected:
  # The widest layer, which rounding to multiples of 8 changes least.
  multiplier = (first(shapes, r"MobilenetV2/expanded_conv_16/project/weights") or 320) / 320
  encoder = dict(output_stride=8, padding="same", folded=True)
  if multiplier != 1.0:
    # TensorFlow rounds channels to multiples of 8 from width 1 on, and not at all below.
    encoder |= dict(width_multiplier=multiplier, divisible_by=8 if multiplier > 1 else 1)
  width = vote(shapes, r"(aspp0|concat_projection)/weights", 256)
  decoder = dict(folded=True, align_corners=True) | ({} if width == 256 else dict(channels=width))
  return Detected(
    "deeplabv3_mobilenetv2",
    first(shapes, r"logits/semantic/weights"),
    encoder=encoder,
    decoder=decoder,
    assumed=("encoder.output_stride", "encoder.padding", "decoder.align_corners"),
  )


def _to_ours(path: str, value: np.ndarray, shape: Shape) -> np.ndarray:
  if not path.endswith("kernel") or value.ndim != 4:
    return value
  depthwise = shape[2] == 1 and value.shape[0] == 1
  return value.transpose(1, 2, 0, 3) if depthwise else value.transpose(1, 2, 3, 0)


def _to_published(path: str, value: np.ndarray, ndim: int | None) -> np.ndarray:
  del ndim  # one rank for all
  if not path.endswith("kernel"):
    return value
  return value.transpose(2, 0, 1, 3) if "/depthwise/" in path else value.transpose(3, 0, 1, 2)


def _place(number: int) -> tuple[int, int]:
  """Group, from 1, and place in it of the block that we number through."""
  for group, depth in enumerate(_DEPTHS, 1):
    if number < depth:
      return group, number
    number -= depth
  return len(_DEPTHS) + 1, number


def _publish_mmseg(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  found = re.fullmatch(r"encoder/(stem|block(\d+)/(expand|depthwise|project))/(conv|norm)", module)
  if found is None:
    return None if path.startswith("encoder/") else deeplab.MMSEG.publish(path)
  kind = f"{'bn' if found[4] == 'norm' else 'conv'}.{LEAVES.get(leaf, leaf)}"
  if found[2] is None:
    return f"backbone.conv1.{kind}"
  number = int(found[2])
  group, place = _place(number)
  # The first block does not expand.
  step = ("expand", "depthwise", "project").index(found[3]) - (number == 0)
  return f"backbone.layer{group}.{place}.conv.{step}.{kind}"


def _detect_mmseg(shapes: Shapes) -> Detected:
  heads = deeplab.MMSEG.detect(shapes)
  depths = tuple(count(shapes, rf"backbone\.layer{i}\.(\d+)\.") for i in range(1, 8))
  encoder = dict(output_stride=8, contract_dilation=False, norm_epsilon=1e-5, norm_momentum=0.1)
  if depths != _DEPTHS:
    encoder["depths"] = depths
  multiplier = vote(shapes, r"backbone\.layer7\.\d+\.conv\.2\.bn\.weight", 320) / 320
  if multiplier != 1.0:
    encoder["width_multiplier"] = multiplier
  assumed = ("encoder.output_stride", "decoder.rates", "decoder.align_corners")
  arch = heads.arch.split("_")[0] + "_mobilenetv2"
  return dataclasses.replace(heads, arch=arch, encoder=encoder, assumed=assumed)


MMSEG = Layout(
  family="mobilenet",
  name="mmseg",
  archs=("deeplabv3_mobilenetv2", "deeplabv3plus_mobilenetv2"),
  publish=_publish_mmseg,
  pattern=rf"backbone\.(conv1|layer[1-7]\.\d+\.conv\.\d)\.(conv|bn)\..*|{deeplab.HEADS}",
  detect=_detect_mmseg,
  record=deeplab.MMSEG.record,
)
TFLITE = Layout(
  family="mobilenet",
  name="tflite",
  archs=("deeplabv3_mobilenetv2", "mobilenetv2"),
  publish=_publish,
  pattern=r"(MobilenetV2/(Conv|expanded_conv(_\d+)?/\w+)|image_pooling|aspp0|concat_projection|logits/semantic)/.*",
  detect=_detect,
  record=default_record(
    _PREPROCESS, "Apache-2.0 (tensorflow/models)", "https://github.com/tensorflow/models"
  ),
  unused=r"(ResizeBilinear_\d+/size|strided_slice_\d+)",
  to_ours=_to_ours,
  to_published=_to_published,
)
