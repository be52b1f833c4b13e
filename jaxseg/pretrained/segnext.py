"""Key maps of SegNeXt and MSCAN: the authors' release and mmsegmentation 1.x's.

The two differ in one name: the feed-forward's depthwise convolution is `dwconv.dwconv` in
the authors' files and `dwconv` in mmsegmentation's. Each exists as a whole model, whose
encoder is `backbone.`, and as an encoder alone with or without an ImageNet classifier
`head`. Names were written from the parity cases' lists and from published state dicts.
"""

import re
from collections.abc import Callable

from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Shapes
from jaxseg.pretrained.records import MMSEG_LICENCE, MMSEG_SOURCE, Record, default_record
from jaxseg.pretrained.shapes import count, first, vote
from jaxseg.types import Preprocess

_STAGE = re.compile(r"encoder/stage([1-4])/(.+)")
_BLOCK = re.compile(r"block(\d+)/(.+)")
_STEM = {"stem_conv": 0, "stem_norm": 1, "embed_conv": 3, "embed_norm": 4}
_EMBED = {"embed_conv": "proj", "embed_norm": "norm"}
_IN_BLOCK = {
  "norm1": "norm1",
  "proj_in": "attn.proj_1",
  "proj_out": "attn.proj_2",
  "attention/local": "attn.spatial_gating_unit.conv0",
  "attention/row7": "attn.spatial_gating_unit.conv0_1",
  "attention/column7": "attn.spatial_gating_unit.conv0_2",
  "attention/row11": "attn.spatial_gating_unit.conv1_1",
  "attention/column11": "attn.spatial_gating_unit.conv1_2",
  "attention/row21": "attn.spatial_gating_unit.conv2_1",
  "attention/column21": "attn.spatial_gating_unit.conv2_2",
  "attention/mix": "attn.spatial_gating_unit.conv3",
  "norm2": "norm2",
  "fc1": "mlp.fc1",
  "fc2": "mlp.fc2",
}
_HEAD = {
  "decoder/squeeze": "decode_head.squeeze.conv",
  "decoder/squeeze_norm": "decode_head.squeeze.gn",
  "decoder/ham_in": "decode_head.hamburger.ham_in.conv",
  "decoder/nmf": "decode_head.hamburger.ham",
  "decoder/ham_out": "decode_head.hamburger.ham_out.conv",
  "decoder/ham_out_norm": "decode_head.hamburger.ham_out.gn",
  "decoder/align": "decode_head.align.conv",
  "decoder/align_norm": "decode_head.align.gn",
  "decoder/classifier": "decode_head.conv_seg",
  "head": "head",
}
# Blocks of the stages and channels of the last → variant.
_VARIANTS = {
  ((3, 3, 5, 2), 256): "tiny",
  ((2, 2, 4, 2), 512): "small",
  ((3, 3, 12, 3), 512): "base",
  ((3, 5, 27, 3), 512): "large",
}
_DIMS = {"tiny": (32, 64, 160, 256)} | dict.fromkeys(("small", "base", "large"), (64, 128, 320, 512))
_HAM = {"tiny": 256, "small": 256, "base": 512, "large": 1024}
_RANK = {"tiny": 16, "small": 16, "base": 64, "large": 64}
SOURCE = "https://github.com/Visual-Attention-Network/SegNeXt"
LICENCE = "Apache-2.0 (SegNeXt's repository, whose authors ask to be contacted before commercial use)"


def _publisher(prefix: str, depthwise: str) -> Callable[[str], str | None]:
  def publish(path: str) -> str | None:
    module, _, leaf = path.rpartition("/")
    if stage := _STAGE.fullmatch(module):
      name = _in_stage(stage[1], stage[2], leaf, depthwise)
      return name and prefix + name
    place = _HEAD.get(module)
    return place and f"{place}.{LEAVES.get(leaf, leaf)}"

  return publish


def _in_stage(stage: str, module: str, leaf: str, depthwise: str) -> str | None:
  kind = LEAVES.get(leaf, leaf)
  block = re.fullmatch(r"block(\d+)", module)
  if block and leaf in ("layer_scale1", "layer_scale2"):
    return f"block{stage}.{block[1]}.layer_scale_{leaf[-1]}"
  if block := _BLOCK.fullmatch(module):
    inner = f"mlp.{depthwise}" if block[2] == "dwconv" else _IN_BLOCK.get(block[2])
    return inner and f"block{stage}.{block[1]}.{inner}.{kind}"
  if module == "norm":
    return f"norm{stage}.{kind}"
  if stage == "1" and module in _STEM:
    return f"patch_embed1.proj.{_STEM[module]}.{kind}"
  return f"patch_embed{stage}.{_EMBED[module]}.{kind}" if module in _EMBED else None


def _detector(prefix: str) -> Callable[[Shapes], Detected]:
  def detect(shapes: Shapes) -> Detected:
    stages = range(1, 5)
    dims = tuple(vote(shapes, rf"{prefix}(norm{i}\.weight|block{i}\..*\.layer_scale_\d)", 0) for i in stages)
    depths = tuple(count(shapes, rf"{prefix}block{i}\.(\d+)\.") for i in stages)
    variant = _VARIANTS.get((depths, dims[3]))
    # Anything else is the nearest in width, with its own fields.
    encoder = {} if variant else {"depths": depths}
    variant = variant or ("tiny" if dims[3] <= 256 else "base")
    if dims != _DIMS[variant]:
      encoder["dims"] = dims
    hidden = [vote(shapes, rf"{prefix}block{i}\.\d+\.mlp\.fc1\.weight", 0) for i in stages]
    ratios = tuple(width // max(dim, 1) for width, dim in zip(hidden, dims, strict=True))
    if all(ratios) and ratios != (8, 8, 4, 4):
      encoder["ffn_ratios"] = ratios
    if not any(name.startswith("decode_head.") for name in shapes):
      return Detected(f"mscan_{variant}", first(shapes, r"head\.weight"), encoder=encoder)
    inner = vote(shapes, r"decode_head\.(squeeze\.gn|hamburger\.ham_out\.gn)\.(weight|bias)", _HAM[variant])
    outer = vote(shapes, r"decode_head\.align\.gn\.(weight|bias)", inner)
    widths = {"ham_channels": inner, "channels": outer}
    decoder = {} if set(widths.values()) == {_HAM[variant]} else widths
    if bases := shapes.get("decode_head.hamburger.ham.bases"):
      if len(bases) == 3 and bases[2] != _RANK[variant]:
        decoder["rank"] = bases[2]
      if len(bases) == 3 and bases[0] != 1:
        decoder["heads"] = bases[0]
    num_classes = first(shapes, r"decode_head\.conv_seg\.weight")
    return Detected(f"segnext_{variant}", num_classes, encoder=encoder, decoder=decoder)

  return detect


def _pattern(prefix: str, depthwise: str) -> str:
  """Names below `prefix`; those of the two depthwise spellings tell the layouts apart."""
  attention = r"attn\.(proj_[12]|spatial_gating_unit\.conv\w+)"
  modules = rf"(norm[12]|{attention}|mlp\.(fc[12]|{depthwise}))\.(weight|bias|running_\w+)"
  block = rf"block[1-4]\.\d+\.(layer_scale_[12]|{modules})"
  encoder = rf"{prefix}({block}|patch_embed[1-4]\.(proj|norm)\..+|norm[1-4]\.(weight|bias))"
  head = r"decode_head\.(squeeze|hamburger|align|conv_seg)\..+" if prefix else r"head\.(weight|bias)"
  return f"{encoder}|{head}"


def _layout(name: str, prefix: str, depthwise: str, record: Callable[[int | None], Record]) -> Layout:
  escaped = re.escape(prefix)
  return Layout(
    family="segnext",
    name=name,
    archs=("segnext_", "mscan_"),
    publish=_publisher(prefix, depthwise),
    pattern=_pattern(escaped, re.escape(depthwise)),
    detect=_detector(escaped),
    record=record,
  )


_AUTHORS = default_record(Preprocess(), LICENCE, SOURCE)
_OF_MMSEG = default_record(Preprocess(), MMSEG_LICENCE, MMSEG_SOURCE)
OFFICIAL = _layout("official", "backbone.", "dwconv.dwconv", _AUTHORS)
MMSEG = _layout("mmseg", "backbone.", "dwconv", _OF_MMSEG)
# The encoder's own files, whose names have no prefix: MSCAN's ImageNet weights.
OFFICIAL_BACKBONE = _layout("official_backbone", "", "dwconv.dwconv", _AUTHORS)
MMSEG_BACKBONE = _layout("mmseg_backbone", "", "dwconv", _OF_MMSEG)
