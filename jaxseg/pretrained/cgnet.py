"""Key maps of CGNet: the authors' release and mmsegmentation's.

Official names: https://github.com/wutianyiRosun/CGNet (MIT). mmsegmentation's:
https://github.com/open-mmlab/mmsegmentation (Apache-2.0), which adds a bias to the classifier.
"""

import re
from typing import Any

import numpy as np

from jaxseg.pretrained import records
from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Shapes
from jaxseg.pretrained.shapes import count, first, vote
from jaxseg.types import Preprocess

# Module inside a block → its official name, in the downsampling block and in the others.
_OFFICIAL_FIRST = {
  "reduce_in/conv": "conv1x1.conv",
  "reduce_in/norm_act/norm": "conv1x1.bn",
  "reduce_in/norm_act/act": "conv1x1.act",
  "local": "F_loc.conv",
  "surround": "F_sur.conv",
  "joint/norm": "bn",
  "joint/act": "act",
  "reduce_out": "reduce.conv",
  "global/squeeze": "F_glo.fc.0",
  "global/excite": "F_glo.fc.2",
}
_OFFICIAL_REST = _OFFICIAL_FIRST | {"joint/norm": "bn_prelu.bn", "joint/act": "bn_prelu.act"}
_OFFICIAL_STEM = {"conv": "conv", "norm_act/norm": "bn", "norm_act/act": "act"}
_MMSEG_STEM = {"conv": "conv", "norm_act/norm": "bn", "norm_act/act": "activate"}
_MMSEG_BLOCK = {
  "reduce_in/conv": "conv1x1.conv",
  "reduce_in/norm_act/norm": "conv1x1.bn",
  "reduce_in/norm_act/act": "conv1x1.activate",
  "local": "f_loc",
  "surround": "f_sur",
  "joint/norm": "bn",
  "joint/act": "activate",
  "reduce_out": "bottleneck",
  "global/squeeze": "f_glo.fc.0",
  "global/excite": "f_glo.fc.2",
}
_BLOCK = re.compile(r"encoder/stage([23])/block(\d+)/(.+)")
_STEM = re.compile(r"encoder/stem([012])/(.+)")
_JOIN = re.compile(r"encoder/join([123])/(norm|act)")

# The authors' statistics, subtracted from RGB in this order; their standard deviations are not used.
_CITYSCAPES = Preprocess((72.78043, 83.212006, 73.45284), (1.0, 1.0, 1.0))
# Computed by the authors in the order blue, green, red, and subtracted from RGB all the same.
_CAMVID = Preprocess((105.6578, 103.3298, 99.6254), (1.0, 1.0, 1.0))
_LICENCE = "MIT (the CGNet code's; the authors state none for the weights)"
_SOURCE = "https://github.com/wutianyiRosun/CGNet"


def _publish_official(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  if module == "decoder/classifier":
    return "classifier.0.conv.weight" if leaf == "kernel" else None
  return _joined(_official_module(module), leaf)


def _official_module(module: str) -> str | None:
  if block := _BLOCK.fullmatch(module):
    stage, number = block[1], int(block[2])
    name = (_OFFICIAL_REST if number else _OFFICIAL_FIRST).get(block[3])
    place = f"level{stage}.{number - 1}" if number else f"level{stage}_0"
    return name and f"{place}.{name}"
  if stem := _STEM.fullmatch(module):
    name = _OFFICIAL_STEM.get(stem[2])
    return name and f"level1_{stem[1]}.{name}"
  if join := _JOIN.fullmatch(module):
    place = "b1" if join[1] == "1" else f"bn_prelu_{join[1]}"
    return f"{place}.{'bn' if join[2] == 'norm' else 'act'}"
  return None


def _publish_mmseg(path: str) -> str | None:
  module, _, leaf = path.rpartition("/")
  return _joined(_mmseg_module(module), leaf)


def _mmseg_module(module: str) -> str | None:
  if module == "decoder/classifier":
    return "decode_head.conv_seg"
  if block := _BLOCK.fullmatch(module):
    name = _MMSEG_BLOCK.get(block[3])
    return name and f"backbone.level{int(block[1]) - 1}.{block[2]}.{name}"
  if stem := _STEM.fullmatch(module):
    name = _MMSEG_STEM.get(stem[2])
    return name and f"backbone.stem.{stem[1]}.{name}"
  if join := _JOIN.fullmatch(module):
    return f"backbone.norm_prelu_{int(join[1]) - 1}.{0 if join[2] == 'norm' else 1}"
  return None


def _joined(module: str | None, leaf: str) -> str | None:
  """The dotted name, or None where the module or its leaf has none."""
  return f"{module}.{LEAVES[leaf]}" if module and leaf in LEAVES else None


def _detect_official(shapes: Shapes) -> Detected:
  return Detected(
    "cgnet_m3n21",
    first(shapes, r"classifier\.0\.conv\.weight"),
    encoder=_encoder_fields(
      shapes,
      stem=r"level1_\d\.bn\.weight",
      join=r"b1\.bn\.weight",
      blocks=(r"level2\.(\d+)\.", r"level3\.(\d+)\."),
      heads=(r"level2_0\.", r"level3_0\."),
      squeeze=r"F_glo\.fc\.0\.weight",
      act=r".*act\.weight",
      offset=1,
    ),
  )


def _detect_mmseg(shapes: Shapes) -> Detected:
  whole = any(name.startswith("decode_head.") for name in shapes)
  has_weight, bias = "decode_head.conv_seg.weight" in shapes, "decode_head.conv_seg.bias" in shapes
  return Detected(
    "cgnet_m3n21" if whole else "cgnet_m3n21_encoder",
    first(shapes, r"decode_head\.conv_seg\.weight") if whole else None,
    encoder=_encoder_fields(
      shapes,
      stem=r"backbone\.stem\.\d\.bn\.weight",
      join=r"backbone\.norm_prelu_0\.0\.weight",
      blocks=(r"backbone\.level1\.(\d+)\.", r"backbone\.level2\.(\d+)\."),
      heads=(r"backbone\.level1\.0\.", r"backbone\.level2\.0\."),
      squeeze=r"f_glo\.fc\.0\.weight",
      act=r".*activate\.weight",
      offset=0,
    ),
    # mmsegmentation's classifier has a bias; only a weight without one is evidence of another.
    decoder={"use_bias": bias or not has_weight} if whole else {},
  )


def _encoder_fields(
  shapes: Shapes,
  *,
  stem: str,
  join: str,
  blocks: tuple[str, str],
  heads: tuple[str, str],
  squeeze: str,
  act: str,
  offset: int,
) -> dict[str, Any]:
  """Fields of `encoders.cgnet.CGNet` that differ from M3N21's, by regexes of names.

  `stem` and `join` are the first BatchNorm's scales, `blocks` (and `heads`, of the downsampling blocks) the
  start of the names in stages 2 and 3; the numbers in `blocks` do not count `offset` of them.
  """
  widths, counts, reductions = [vote(shapes, stem, 32)], [], []
  pointwise = {name: shape for name, shape in shapes.items() if shape[2:] == (1, 1)}
  for i, (block, head) in enumerate(zip(blocks, heads, strict=True)):
    counts.append(max(count(shapes, block) + offset, 1))
    # A residual block's first 1×1 reads the stage's width; a stage of one block has only the head.
    width = vote(shapes, head + r"conv1x1\.bn\.weight", (64, 128)[i])
    widths.append(vote(pointwise, block + r"conv1x1\.conv\.weight", width, axis=1))
    reductions.append(widths[-1] // max(vote(shapes, f"({block}|{head}){squeeze}", 8), 1))
  fields = {
    "widths": tuple(widths),
    "num_blocks": tuple(counts),
    "reductions": tuple(reductions),
    "global_context": any(re.search(squeeze, name) for name in shapes),
    "input_injection": first(shapes, join) != widths[0],
    "activation": "prelu" if any(re.fullmatch(act, name) for name in shapes) else "relu",
  }
  if not fields["global_context"]:
    del fields["reductions"]
  usual = dict(
    widths=(32, 64, 128),
    num_blocks=(3, 21),
    reductions=(8, 16),
    global_context=True,
    input_injection=True,
    activation="prelu",
  )
  return {key: value for key, value in fields.items() if value != usual[key]}


def _official_record(num_classes: int | None) -> records.Record:
  return records.default_record(_CAMVID if num_classes == 11 else _CITYSCAPES, _LICENCE, _SOURCE)(num_classes)


def _add_bias(tensors: dict[str, np.ndarray]) -> None:
  """The classifier of mmsegmentation has a bias; zeros where our model has none give the same logits."""
  weight = tensors.get("decode_head.conv_seg.weight")
  if weight is not None:
    tensors.setdefault("decode_head.conv_seg.bias", np.zeros(weight.shape[:1], weight.dtype))


OFFICIAL = Layout(
  family="cgnet",
  name="official",
  archs=("cgnet_",),
  publish=_publish_official,
  pattern=r"(level1_[012]|b1|bn_prelu_[23]|level[23]_0|level[23]\.\d+|classifier\.0)\..*",
  detect=_detect_official,
  record=_official_record,
)
MMSEG = Layout(
  family="cgnet",
  name="mmseg",
  archs=("cgnet_",),
  publish=_publish_mmseg,
  pattern=r"(backbone\.(stem\.[012]\.(conv|bn|activate)|norm_prelu_\d|level[12]\.\d+)|decode_head\.conv_seg)\..*",
  detect=_detect_mmseg,
  record=records.default_record(records.MMSEG_CGNET_CITYSCAPES, records.MMSEG_LICENCE, records.MMSEG_SOURCE),
  complete=_add_bias,
)
