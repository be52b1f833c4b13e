"""Key map of torchvision's VGG16: https://github.com/pytorch/vision (BSD-3-Clause).

Only its convolutions are used: as an encoder it starts a DeepLab v1 or v2. The classifier
behind them (`classifier.*`, timm's `pre_logits.*` and `head.*`) is carried without use.
"""

import re

from jaxseg.errors import UserError
from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Shapes
from jaxseg.pretrained.resnet import TORCHVISION_RECORD

_CONV = re.compile(r"encoder/stage([1-5])_conv(\d)")
# Places of the convolutions in the original's one list of layers, by block.
_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def _publish(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  found = _CONV.fullmatch(module)
  if found is None or int(found[2]) >= len(_PLACES[int(found[1]) - 1]):
    return None
  return f"features.{_PLACES[int(found[1]) - 1][int(found[2])]}.{LEAVES.get(leaf, leaf)}"


def _detect(shapes: Shapes) -> Detected:
  if "features.1.running_mean" in shapes:
    raise UserError("it is a VGG with BatchNorm, which no encoder here has; take the weights of vgg16")
  fields = dict(output_stride=32, pool_size=2, average_pool=False)
  return Detected("vgg16", encoder=fields)


TORCHVISION_VGG = Layout(
  family="vgg",
  name="torchvision_backbone",
  archs=("vgg16",),
  publish=_publish,
  pattern=r"(features\.\d+|classifier\.[036]|pre_logits\.fc[12]|head\.fc)\.(weight|bias)",
  detect=_detect,
  record=TORCHVISION_RECORD,
  unused=r"(classifier|pre_logits|head)\..*",
)
