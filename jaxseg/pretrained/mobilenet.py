"""Key map of TensorFlow's DeepLab v3 on MobileNetV2 as exported for inference (TF-Lite).

https://github.com/tensorflow/models (Apache-2.0). The arrays have BatchNorm folded into
them; kernels are (out, rows, columns, in), depthwise ones (1, rows, columns, channels).
"""

import re

import numpy as np

from jaxseg.pretrained import classes
from jaxseg.pretrained.keymap import Detected, Layout, Shape, Shapes
from jaxseg.pretrained.records import Record
from jaxseg.pretrained.shapes import first, vote
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


def _record(num_classes: int | None) -> Record:
  licence = "Apache-2.0 (tensorflow/models)"
  return Record(_PREPROCESS, classes.by_count(num_classes), licence, "https://github.com/tensorflow/models")


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


TFLITE = Layout(
  family="mobilenet",
  name="tflite",
  archs=("deeplabv3_mobilenetv2", "mobilenetv2"),
  publish=_publish,
  pattern=r"(MobilenetV2/(Conv|expanded_conv(_\d+)?/\w+)|image_pooling|aspp0|concat_projection|logits/semantic)/.*",
  detect=_detect,
  record=_record,
  unused=r"(ResizeBilinear_\d+/size|strided_slice_\d+)",
  to_ours=_to_ours,
  to_published=_to_published,
)
