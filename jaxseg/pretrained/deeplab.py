"""Key maps of DeepLab on ResNet: mmsegmentation's v3 and v3+, torchvision's v3, kazuto1011's v2.

https://github.com/open-mmlab/mmsegmentation (Apache-2.0), https://github.com/pytorch/vision
(BSD-3-Clause), https://github.com/kazuto1011/deeplab-pytorch (MIT). Names were written from
the parity cases' lists and from published state dicts. No tensor shows rates and strides:
they are the layouts' defaults, and `assumed` lists them.
"""

import re
from collections.abc import Callable
from typing import Any

from jaxseg.pretrained import resnet
from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Shapes
from jaxseg.pretrained.records import MMSEG_LICENCE, MMSEG_SOURCE, default_record
from jaxseg.pretrained.shapes import count, first, vote
from jaxseg.types import Preprocess

_PYRAMID = re.compile(r"decoder/aspp/(image_pool|branch\d)/(?:(depthwise|pointwise)/)?(conv|norm)")
_CONVS = re.compile(r"decoder/conv(\d)/(depthwise|pointwise)/(conv|norm)")
_MMSEG = {
  "decoder/aspp/fuse": "decode_head.bottleneck.conv",
  "decoder/aspp/fuse_norm": "decode_head.bottleneck.bn",
  "decoder/low_level/conv": "decode_head.c1_bottleneck.conv",
  "decoder/low_level/norm": "decode_head.c1_bottleneck.bn",
  "decoder/classifier": "decode_head.conv_seg",
  "aux_decoder/conv0": "auxiliary_head.convs.0.conv",
  "aux_decoder/norm0": "auxiliary_head.convs.0.bn",
  "aux_decoder/classifier": "auxiliary_head.conv_seg",
}
_TORCHVISION = {
  "decoder/aspp/fuse": "classifier.0.project.0",
  "decoder/aspp/fuse_norm": "classifier.0.project.1",
  "decoder/extra/conv": "classifier.1",
  "decoder/extra/norm": "classifier.2",
  "decoder/classifier": "classifier.4",
  "aux_decoder/conv0": "aux_classifier.0",
  "aux_decoder/norm0": "aux_classifier.1",
  "aux_decoder/classifier": "aux_classifier.4",
}
_KAZUTO = {"reduce": "reduce", "spatial": "conv3x3", "expand": "increase", "shortcut": "shortcut"}
_AUX = dict(stage="stage3", num_convs=1, dropout_rate=0.1)
# Stage 3 and 4 do not stride; the first unit of each keeps the rate before it.
_DILATED = dict(output_stride=8, contract_dilation=True, multi_grid=())
_RATES = (12, 24, 36)
_KAZUTO_LICENCE = "MIT (kazuto1011/deeplab-pytorch)"
# Caffe's mean colour; BGR pixels, not divided.
_CAFFE = Preprocess((122.675, 116.669, 104.008), (1.0, 1.0, 1.0), channel_order="bgr")


def _publish_mmseg(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  kind = LEAVES.get(leaf, leaf)
  if name := resnet.encoder_name(path):
    return f"backbone.{name}"
  if found := _PYRAMID.fullmatch(module):
    branch, half, what = found.groups()
    # The image-level branch is a pool and a convolution in a list.
    place = "image_pool.1" if branch == "image_pool" else f"aspp_modules.{branch.removeprefix('branch')}"
    half = f"{half}_conv." if half else ""
    return f"decode_head.{place}.{half}{_mm(what)}.{kind}"
  if found := _CONVS.fullmatch(module):
    return f"decode_head.sep_bottleneck.{found[1]}.{found[2]}_conv.{_mm(found[3])}.{kind}"
  return f"{_MMSEG[module]}.{kind}" if module in _MMSEG else None


def _mm(what: str) -> str:
  return "bn" if what == "norm" else "conv"


def _publish_torchvision(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  kind = LEAVES.get(leaf, leaf)
  if name := resnet.encoder_name(path):
    # torchvision has the plain stem only.
    return None if name.startswith("stem.") else f"backbone.{name}"
  found = _PYRAMID.fullmatch(module)
  if found and not found[2]:
    norm = int(found[3] == "norm")
    if found[1] == "image_pool":
      return f"classifier.0.convs.4.{1 + norm}.{kind}"
    return f"classifier.0.convs.{found[1].removeprefix('branch')}.{norm}.{kind}"
  return f"{_TORCHVISION[module]}.{kind}" if module in _TORCHVISION else None


def _publish_kazuto(prefix: str) -> Callable[[str], str | None]:
  def publish(path: str) -> str | None:
    module, _, leaf = path.rpartition("/")
    kind = LEAVES.get(leaf, leaf)
    if module in ("encoder/stem/conv", "encoder/stem/norm"):
      return f"{prefix}layer1.conv1.{_mm(module.rsplit('/')[-1])}.{kind}"
    if unit := re.fullmatch(r"encoder/stage(\d)_block(\d+)/(\w+)/(conv|norm)", module):
      place = f"layer{int(unit[1]) + 1}.block{int(unit[2]) + 1}.{_KAZUTO[unit[3]]}.{_mm(unit[4])}"
      return f"{prefix}{place}.{kind}"
    branch = re.fullmatch(r"decoder/classifier(\d)", module)
    return f"{prefix}aspp.c{branch[1]}.{kind}" if branch else None

  return publish


def _detect_mmseg(shapes: Shapes) -> Detected:
  name, encoder = resnet.variant(shapes, r"backbone\.")
  plus = any(re.match(r"decode_head\.(c1|sep)_bottleneck\.", shape) for shape in shapes)
  separable = r"decode_head\.aspp_modules\.[1-9]\.pointwise_conv\.bn\.\w+"
  width = vote(shapes, rf"decode_head\.bottleneck\.bn\.\w+|{separable}", 512)
  decoder: dict[str, Any] = dict(
    channels=width, rates=_RATES, fuse_kernel=3, dropout="channels", dropout_rate=0.1
  )
  if plus:
    low = vote(shapes, r"decode_head\.c1_bottleneck\.bn\.\w+", 48)
    decoder |= dict(separable=True, aspp_dropout_rate=0.0, low_level_channels=low)
  return Detected(
    f"deeplabv3{'plus' if plus else ''}_{name}",
    first(shapes, r"decode_head\.conv_seg\.weight"),
    encoder=_DILATED | encoder,
    decoder=decoder,
    aux_decoder=_aux(shapes, r"auxiliary_head\.convs\.0\.bn\.\w+") | dict(dropout_rate=0.1)
    if any(shape.startswith("auxiliary_head.") for shape in shapes)
    else {},
    assumed=("encoder.output_stride", "encoder.contract_dilation", "encoder.multi_grid")
    + ("decoder.rates", "decoder.align_corners"),
  )


def _detect_torchvision(shapes: Shapes) -> Detected:
  name, encoder = resnet.variant(shapes, r"backbone\.")
  width = vote(shapes, r"classifier\.(0\.project\.1|2)\.\w+", 256)
  decoder = dict(channels=width, rates=_RATES, concat_order="pool_last", extra_conv=True, dropout_rate=0.5)
  return Detected(
    f"deeplabv3_{name}",
    first(shapes, r"classifier\.4\.weight"),
    encoder=_DILATED | encoder,
    decoder=decoder,
    aux_decoder=_aux(shapes, r"aux_classifier\.1\.\w+")
    if any(shape.startswith("aux_classifier.") for shape in shapes)
    else {},
    assumed=("encoder.output_stride", "decoder.rates"),
  )


def _aux(shapes: Shapes, norms: str) -> dict[str, Any]:
  return _AUX | dict(channels=vote(shapes, norms, 256))


def _detect_kazuto(prefix: str) -> Callable[[Shapes], Detected]:
  start = re.escape(prefix)

  def detect(shapes: Shapes) -> Detected:
    sizes = tuple(count(shapes, rf"{start}layer{i}\.block(\d+)\.") for i in range(2, 6))
    width = vote(shapes, rf"{start}layer1\.conv1\.bn\.\w+", 64)
    encoder = ({} if sizes == (3, 4, 23, 3) else {"stage_sizes": sizes}) | (
      {} if width == 64 else {"width": width}
    )
    branches = count(shapes, rf"{start}aspp\.c(\d)\.")
    usual = (6, 12, 18, 24)
    rates = usual if branches in (0, 4) else tuple(6 * (i + 1) for i in range(branches))
    return Detected(
      "deeplabv2_resnet101",
      first(shapes, rf"{start}aspp\.c\d\.weight"),
      encoder=encoder,
      decoder={} if rates == usual else {"rates": rates},
      scales=(1.0, 0.75, 0.5) if prefix else (1.0,),
      assumed=("encoder.output_stride", "decoder.rates", *(("scales",) if prefix else ())),
    )

  return detect


def _kazuto(name: str, prefix: str) -> Layout:
  unit = r"layer[2-5]\.block\d+\.(reduce|conv3x3|increase|shortcut)"
  return Layout(
    family="deeplab",
    name=name,
    archs=("deeplabv2_resnet", "resnet"),
    publish=_publish_kazuto(prefix),
    pattern=rf"{re.escape(prefix)}((layer1\.conv1|{unit})\.(conv|bn)|aspp\.c\d)\..*",
    detect=_detect_kazuto(prefix),
    record=default_record(_CAFFE, _KAZUTO_LICENCE, "https://github.com/kazuto1011/deeplab-pytorch"),
    # The initial weights (DeepLab v1 on COCO) may come with their own classifier.
    unused=rf".*\.num_batches_tracked|{re.escape(prefix)}fc\.(weight|bias)",
  )


# mmsegmentation's names behind its encoders.
HEADS = (
  r"decode_head\.((aspp_modules\.\d|image_pool\.1|bottleneck|c1_bottleneck|sep_bottleneck\.\d)\..*|conv_seg\..*)"
  r"|auxiliary_head\..*"
)
MMSEG = Layout(
  family="deeplab",
  name="mmseg",
  archs=("deeplabv3_resnet", "deeplabv3plus_resnet", "resnet"),
  publish=_publish_mmseg,
  pattern=rf"backbone\.{resnet.NAMES}|{HEADS}",
  detect=_detect_mmseg,
  record=default_record(Preprocess(), MMSEG_LICENCE, MMSEG_SOURCE),
)
TORCHVISION = Layout(
  family="deeplab",
  name="torchvision",
  archs=("deeplabv3_resnet", "resnet"),
  publish=_publish_torchvision,
  pattern=rf"backbone\.{resnet.NAMES}|(classifier\.(0\.(convs|project)|[124])|aux_classifier)\..*",
  detect=_detect_torchvision,
  record=default_record(resnet.TORCHVISION, resnet.TORCHVISION_LICENCE, resnet.TORCHVISION_SOURCE),
)
# Saved with its multi-scale wrapper, and without.
KAZUTO = _kazuto("kazuto1011", "base.")
KAZUTO_SINGLE = _kazuto("kazuto1011_single", "")
