"""Key maps of SegFormer and MiT: NVlabs', mmsegmentation's and Hugging Face's two.

NVlabs fuses key and value into `kv`, mmsegmentation packs query, key and value into
`in_proj`, Hugging Face keeps them apart. Hugging Face's files hold the names of
transformers 4 ("hf4"); transformers 5 renames them when it loads ("hf"). Each exists as a
whole model and as an encoder alone, with or without an ImageNet classifier.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from jaxseg.pretrained import records
from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Part, Shapes
from jaxseg.pretrained.records import default_record
from jaxseg.pretrained.shapes import count, first, vote
from jaxseg.types import Preprocess

_PATH = re.compile(r"encoder/stage([1-4])/(?:block(\d+)/)?(.+)/(\w+)")
_PROJECT = re.compile(r"decoder/project_(norm_)?stage([1-4])/(\w+)")
_QKV = ("attention/query", "attention/key", "attention/value")

# Where things stand; {i} is the stage from 0, {s} from 1, {b} the block.
_NVLABS = {
  "embed": "patch_embed{s}.proj",
  "embed_norm": "patch_embed{s}.norm",
  "norm": "norm{s}",
  "block": "block{s}.{b}.",
  "norm1": "norm1",
  "attention/query": "attn.q",
  "attention/out": "attn.proj",
  "attention/reduce": "attn.sr",
  "attention/reduce_norm": "attn.norm",
  "norm2": "norm2",
  "ffn/fc1": "mlp.fc1",
  "ffn/dwconv": "mlp.dwconv.dwconv",
  "ffn/fc2": "mlp.fc2",
}
_MMSEG = {
  "embed": "layers.{i}.0.projection",
  "embed_norm": "layers.{i}.0.norm",
  "norm": "layers.{i}.2",
  "block": "layers.{i}.1.{b}.",
  "norm1": "norm1",
  "attention/out": "attn.attn.out_proj",
  "attention/reduce": "attn.sr",
  "attention/reduce_norm": "attn.norm",
  "norm2": "norm2",
  "ffn/fc1": "ffn.layers.0",
  "ffn/dwconv": "ffn.layers.1",
  "ffn/fc2": "ffn.layers.4",
}
_HF = {
  "embed": "stages.{i}.patch_embeddings.proj",
  "embed_norm": "stages.{i}.patch_embeddings.layer_norm",
  "norm": "stages.{i}.layer_norm",
  "block": "stages.{i}.blocks.{b}.",
  "norm1": "layernorm_before",
  "attention/query": "attention.q_proj",
  "attention/key": "attention.k_proj",
  "attention/value": "attention.v_proj",
  "attention/out": "attention.o_proj",
  "attention/reduce": "attention.sequence_reduction.sequence_reduction",
  "attention/reduce_norm": "attention.sequence_reduction.layer_norm",
  "norm2": "layernorm_after",
  "ffn/fc1": "mlp.fc1",
  "ffn/dwconv": "mlp.dwconv.dwconv",
  "ffn/fc2": "mlp.fc2",
}
_HF4 = {
  "embed": "encoder.patch_embeddings.{i}.proj",
  "embed_norm": "encoder.patch_embeddings.{i}.layer_norm",
  "norm": "encoder.layer_norm.{i}",
  "block": "encoder.block.{i}.{b}.",
  "norm1": "layer_norm_1",
  "attention/query": "attention.self.query",
  "attention/key": "attention.self.key",
  "attention/value": "attention.self.value",
  "attention/out": "attention.output.dense",
  "attention/reduce": "attention.self.sr",
  "attention/reduce_norm": "attention.self.layer_norm",
  "norm2": "layer_norm_2",
  "ffn/fc1": "mlp.dense1",
  "ffn/dwconv": "mlp.dwconv.dwconv",
  "ffn/fc2": "mlp.dense2",
}
_NVLABS_HEAD = {
  "decoder/fuse": "decode_head.linear_fuse.conv",
  "decoder/fuse_norm": "decode_head.linear_fuse.bn",
  "decoder/classifier": "decode_head.linear_pred",
  "project": "decode_head.linear_c{s}.proj",
  "head": "head",
}
_MMSEG_HEAD = {
  "decoder/fuse": "decode_head.fusion_conv.conv",
  "decoder/fuse_norm": "decode_head.fusion_conv.bn",
  "decoder/classifier": "decode_head.conv_seg",
  "project": "decode_head.convs.{i}.conv",
  "project_norm": "decode_head.convs.{i}.bn",
  "head": "head",
}
_HF_HEAD = {
  "decoder/fuse": "decode_head.linear_fuse",
  "decoder/fuse_norm": "decode_head.batch_norm",
  "decoder/classifier": "decode_head.classifier",
  "project": "decode_head.linear_projections.{i}.proj",
  "head": "classifier",
}
_HF4_HEAD = _HF_HEAD | {"project": "decode_head.linear_c.{i}.proj"}

# Blocks of the stages and channels of the first → variant.
_VARIANTS = {
  ((2, 2, 2, 2), 32): "b0",
  ((2, 2, 2, 2), 64): "b1",
  ((3, 4, 6, 3), 64): "b2",
  ((3, 4, 18, 3), 64): "b3",
  ((3, 8, 27, 3), 64): "b4",
  ((3, 6, 40, 3), 64): "b5",
}
_WIDTHS = {"b0": 256, "b1": 256} | dict.fromkeys(("b2", "b3", "b4", "b5"), 768)
_DIMS = {32: (32, 64, 160, 256), 64: (64, 128, 320, 512)}
NVIDIA_LICENCE = "NVIDIA Source Code License for SegFormer: non-commercial use only (research or evaluation)"
NVIDIA_SOURCE = "https://github.com/NVlabs/SegFormer"
MMSEG_LICENCE = (
  f"{records.MMSEG_LICENCE}; trained from NVIDIA's encoder weights, whose licence is: {NVIDIA_LICENCE}"
)


def _publisher(
  prefix: str, names: Mapping[str, str], head: Mapping[str, str], *, qkv: Callable[[str], Part | None]
) -> Callable[[str], str | Part | None]:
  """The layout's `publish`; `qkv`: "attention/key/weight" → its place in a joint tensor of the attention."""

  def publish(path: str) -> str | Part | None:
    module, _, leaf = path.rpartition("/")
    kind = LEAVES.get(leaf, leaf)
    if found := _PATH.fullmatch(path):
      stage, block, inner, _ = found.groups()
      place = {"i": int(stage) - 1, "s": stage, "b": block}
      start = prefix + (names["block"].format(**place) if block else "")
      if block and (part := qkv(f"{inner}/{kind}")):
        return Part(start + part.name, part.index, part.count)
      if inner not in names:
        return None
      name = f"{start}{names[inner].format(**place)}.{kind}"
      # mmsegmentation's linear layers of the feed-forward are 1×1 convolutions.
      return Part(name, ndim=4) if names is _MMSEG and leaf == "kernel" and "/fc" in inner else name
    if found := _PROJECT.fullmatch(path):
      name = head.get("project_norm" if found[1] else "project")
      # Without bias it is a convolution's, with bias a linear layer's: never the other's place.
      linear = "project_norm" not in head
      if name is None or (leaf == "bias" and not linear and not found[1]):
        return None
      return f"{name.format(i=int(found[2]) - 1, s=found[2])}.{kind}"
    name = head.get(module)
    return name and f"{name}.{kind}"

  return publish


def _fused_kv(name: str) -> Part | None:
  module, kind = name.rsplit("/", 1)
  return Part(f"attn.kv.{kind}", _QKV.index(module) - 1, 2) if module in _QKV[1:] else None


def _packed_qkv(name: str) -> Part | None:
  module, kind = name.rsplit("/", 1)
  return Part(f"attn.attn.in_proj_{kind}", _QKV.index(module), 3) if module in _QKV else None


def _pattern(prefix: str, names: Mapping[str, str], head: Mapping[str, str], joint: str) -> str:
  """The names that the tables make, and `joint` tensors inside the attention."""

  def regex(name: str) -> str:
    return re.sub(r"\\\{[isb]\\\}", r"\\d+", re.escape(name))

  outer = [names[key] for key in ("embed", "embed_norm", "norm")]
  inner = [name for key, name in names.items() if key != "block" and name not in outer]
  inside = "|".join([*map(regex, inner), *filter(None, [joint])])
  encoder = f"{regex(prefix)}({'|'.join(map(regex, outer))}|{regex(names['block'])}({inside}))"
  others = "|".join(regex(name) for key, name in head.items() if key == "head" or prefix)
  return rf"({encoder}|{others})[._](weight|bias|running_mean|running_var)"


def _detector(
  prefix: str,
  names: Mapping[str, str],
  head: Mapping[str, str],
  encoder_fields: Mapping[str, str],
  decoder_fields: Mapping[str, str],
) -> Callable[[Shapes], Detected]:
  def stage(i: int, key: str) -> str:
    block = names["block"] if key in ("norm1", "ffn/fc1", "attention/reduce") else ""
    name = re.escape(prefix + (block + names[key]).format(i=i, s=i + 1, b="BLOCK"))
    return name.replace("BLOCK", r"\d+") + r"\.weight"

  def detect(shapes: Shapes) -> Detected:
    dims = tuple(vote(shapes, f"{stage(i, 'norm')}|{stage(i, 'norm1')}", 0) for i in range(4))
    blocks = [re.escape(prefix + names["block"].format(i=i, s=i + 1, b="BLOCK")) for i in range(4)]
    depths = tuple(count(shapes, block.replace("BLOCK", r"(\d+)")) for block in blocks)
    variant = _VARIANTS.get((depths, dims[0]))
    # Anything else is the nearest in width, with its own fields.
    encoder = dict(encoder_fields) | ({} if variant else {"depths": depths})
    variant = variant or ("b0" if dims[0] <= 32 else "b2")
    assumed = ()
    if dims != _DIMS[32 if variant == "b0" else 64]:
      encoder["dims"] = dims
      # No tensor shows the heads: in every published model they are as wide as the first stage.
      if dims[0] and not any(dim % dims[0] for dim in dims):
        encoder["num_heads"], assumed = tuple(dim // dims[0] for dim in dims), ("encoder.num_heads",)
    ratios = tuple(vote(shapes, stage(i, "ffn/fc1"), 4 * dims[i]) // max(dims[i], 1) for i in range(4))
    if ratios != (4, 4, 4, 4):
      encoder["ffn_ratios"] = ratios
    strides = tuple(vote(shapes, stage(i, "attention/reduce"), 1, axis=2) for i in range(4))
    if strides != (8, 4, 2, 1):
      encoder["reductions"] = strides
    if not any(name.startswith("decode_head.") for name in shapes):
      num_classes = first(shapes, re.escape(head["head"]) + r"\.weight")
      return Detected(f"mit_{variant}", num_classes, encoder=encoder, assumed=assumed)
    decoder = dict(decoder_fields)
    width = vote(shapes, re.escape(head["decoder/fuse_norm"]) + r"\..*", _WIDTHS[variant])
    if width != _WIDTHS[variant]:
      decoder["width"] = width
    num_classes = first(shapes, re.escape(head["decoder/classifier"]) + r"\.weight")
    return Detected(f"segformer_{variant}", num_classes, encoder=encoder, decoder=decoder, assumed=assumed)

  return detect


_NVIDIA = default_record(Preprocess(), NVIDIA_LICENCE, NVIDIA_SOURCE)
_OF_MMSEG = default_record(Preprocess(), MMSEG_LICENCE, records.MMSEG_SOURCE)
# The processor's default: a fixed square, the aspect ratio not kept.
_OF_HF = default_record(Preprocess(size=(512, 512)), NVIDIA_LICENCE, "https://huggingface.co/nvidia")


def _add_conv_seg(tensors: dict[str, np.ndarray]) -> None:
  """NVlabs' decoder carries a classifier that it never uses; strict loading wants it."""
  bias = tensors.get("decode_head.linear_pred.bias")
  if bias is not None:
    tensors.setdefault("decode_head.conv_seg.weight", np.zeros((len(bias), 128, 1, 1), bias.dtype))
    tensors.setdefault("decode_head.conv_seg.bias", np.zeros_like(bias))


_COUNTER = r".*\.num_batches_tracked"


def _layout(
  name, prefix, names, head, qkv, joint, record, *, encoder, decoder, unused=_COUNTER, complete=None
):
  return Layout(
    family="segformer",
    name=name,
    archs=("segformer_", "mit_"),
    publish=_publisher(prefix, names, head, qkv=qkv),
    pattern=_pattern(prefix, names, head, joint),
    detect=_detector(prefix, names, head, encoder, decoder),
    record=record,
    unused=unused,
    complete=complete,
  )


def _nvlabs(name: str, prefix: str) -> Layout:
  return _layout(
    name, prefix, _NVLABS, _NVLABS_HEAD, _fused_kv, r"attn\.kv", _NVIDIA,
    encoder={}, decoder={}, unused=rf"{_COUNTER}|decode_head\.conv_seg\..*", complete=_add_conv_seg,
  )  # fmt: skip


def _mmseg(name: str, prefix: str) -> Layout:
  return _layout(
    name, prefix, _MMSEG, _MMSEG_HEAD, _packed_qkv, r"attn\.attn\.in_proj", _OF_MMSEG,
    encoder={"epsilons": "mmseg"}, decoder={"projection": "conv", "concat_order": "fine_to_coarse"},
  )  # fmt: skip


def _hf(name: str, prefix: str, names: Mapping[str, str], head: Mapping[str, str]) -> Layout:
  return _layout(
    name, prefix, names, head, lambda _: None, "", _OF_HF,
    encoder={"epsilons": "hf"}, decoder={"dropout": "elements"},
  )  # fmt: skip


NVLABS = _nvlabs("nvlabs", "backbone.")
NVLABS_BACKBONE = _nvlabs("nvlabs_backbone", "")
MMSEG = _mmseg("mmseg", "backbone.")
MMSEG_BACKBONE = _mmseg("mmseg_backbone", "")
HF = _hf("hf", "segformer.", _HF, _HF_HEAD)
HF_BACKBONE = _hf("hf_backbone", "", _HF, _HF_HEAD)
HF4 = _hf("hf4", "segformer.", _HF4, _HF4_HEAD)
HF4_BACKBONE = _hf("hf4_backbone", "", _HF4, _HF4_HEAD)
