"""The key-map framework on a made-up layout, and the whole set of layouts on their own promises."""

import ml_dtypes
import numpy as np
import pytest

from jaxseg.pretrained import LAYOUTS, keymap, published_names
from jaxseg.pretrained.keymap import LEAVES, Detected, Layout, Part, Stored
from jaxseg.pretrained.records import Record
from jaxseg.pretrained.weights import Weights
from jaxseg.types import Preprocess


def _publish(path: str) -> str | Part | None:
  module, leaf = path.rsplit("/", 1)
  fused = {"query": 0, "key": 1, "value": 2}
  if (last := module.rsplit("/", 1)[-1]) in fused:
    return Part(f"attn.qkv.{LEAVES[leaf]}", fused[last], 3)
  if module == "decoder/fuse":
    return Part("fuse.weight", ndim=4)
  return None if module == "decoder/extra" else f"{module.replace('/', '.')}.{LEAVES.get(leaf, leaf)}"


_LAYOUT = Layout(
  family="toy",
  name="toy",
  archs=("toy",),
  publish=_publish,
  pattern=r"(attn|fuse|encoder)\..*",
  detect=lambda shapes: Detected("toy"),
  record=lambda n: Record(Preprocess(), None, "", ""),
  unused=r".*\.num_batches_tracked|conv_seg\..*",
)


def _file(rng) -> dict[str, np.ndarray]:
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
  return {
    "attn.qkv.weight": draw(12, 5),
    "attn.qkv.bias": draw(12),
    "fuse.weight": draw(6, 8, 1, 1).astype(ml_dtypes.bfloat16),
    "encoder.dense.weight": draw(7, 4),
    "encoder.conv.weight": draw(6, 2, 3, 5),
    "encoder.depthwise.weight": draw(6, 1, 3, 3),
    "encoder.bn.running_mean": draw(6).astype(np.float16),
    "encoder.bn.num_batches_tracked": np.asarray(3, np.int64),
    "encoder.layer_scale": draw(6),
    "conv_seg.weight": draw(2, 6, 1, 1),
  }


_SHAPES = {
  "encoder/attn/query/kernel": (5, 4),
  "encoder/attn/query/bias": (4,),
  "encoder/attn/key/kernel": (5, 4),
  "encoder/attn/key/bias": (4,),
  "encoder/attn/value/kernel": (5, 4),
  "encoder/attn/value/bias": (4,),
  "decoder/fuse/kernel": (8, 6),
  "encoder/dense/kernel": (4, 7),
  "encoder/conv/kernel": (3, 5, 2, 6),
  "encoder/depthwise/kernel": (3, 3, 1, 6),
  "encoder/bn/mean": (6,),
  "encoder/layer_scale": (6,),
}


def _weights(tensors, tmp_path, **opaque) -> Weights:
  return Weights(tensors, tmp_path / "toy.pth", opaque)


def test_axis_orders_parts_and_the_way_back(tmp_path):
  tensors = _file(np.random.default_rng(0))
  leaves, differences, unused = keymap.read_leaves(_LAYOUT, _weights(tensors, tmp_path), _SHAPES)
  assert not differences, differences.text()
  assert {path: value.shape for path, value in leaves.items()} == _SHAPES
  assert all(value.dtype == np.float32 for value in leaves.values())
  np.testing.assert_array_equal(leaves["encoder/attn/key/kernel"], tensors["attn.qkv.weight"][4:8].T)
  np.testing.assert_array_equal(
    leaves["encoder/conv/kernel"][1, 2, 0, 3], tensors["encoder.conv.weight"][3, 0, 1, 2]
  )
  np.testing.assert_array_equal(
    leaves["encoder/depthwise/kernel"][:, :, 0], tensors["encoder.depthwise.weight"][:, 0].transpose(1, 2, 0)
  )
  assert set(unused) == {"encoder.bn.num_batches_tracked", "conv_seg.weight"}
  stored = {name: Stored(value.shape, value.dtype) for name, value in tensors.items()}
  back = keymap.write_leaves(_LAYOUT, leaves, stored)
  assert list(back) == list(tensors)
  for name, value in tensors.items():
    assert (back[name].shape, back[name].dtype) == (value.shape, value.dtype), name
    expected = np.zeros_like(value) if name in unused else value
    assert back[name].tobytes() == expected.tobytes(), name


def test_every_kind_of_difference_in_one_report(tmp_path):
  tensors = _file(np.random.default_rng(0))
  del tensors["attn.qkv.bias"], tensors["encoder.layer_scale"]
  tensors["encoder.other.weight"] = np.zeros(2, np.float32)
  tensors["encoder.conv.weight"] = np.zeros((6, 3, 3, 5), np.float32)
  found = _weights(tensors, tmp_path, **{"encoder.layer_scale": "mmengine.HistoryBuffer", "epoch": "int"})
  _, differences, _ = keymap.read_leaves(_LAYOUT, found, _SHAPES | {"decoder/extra/kernel": (1, 2)})
  text = differences.text()
  assert "attn.qkv.bias" in text
  assert "encoder.layer_scale (there is a mmengine.HistoryBuffer, not a tensor)" in text
  assert "decoder/extra/kernel (the layout toy/toy has no name for it)" in text
  assert differences.unexpected == ["encoder.other.weight"]
  assert differences.shapes == ["encoder.conv.weight is (6, 3, 3, 5), the model wants (6, 2, 3, 5)"]


def test_writing_a_leaf_without_a_place_is_an_error():
  with pytest.raises(ValueError, match="toy/toy has no name for decoder/extra/kernel"):
    keymap.write_leaves(_LAYOUT, {"decoder/extra/kernel": np.zeros((1, 2))}, {})


def test_another_layout_gets_the_counters_that_pytorch_asks_for():
  out = keymap.write_leaves(_LAYOUT, {"encoder/bn/var": np.ones(3, np.float32)}, {})
  assert list(out) == ["encoder.bn.running_var", "encoder.bn.num_batches_tracked"]
  assert out["encoder.bn.num_batches_tracked"].dtype == np.int64


def test_unknown_names_show_some_and_the_known_layouts(tmp_path):
  found = _weights({"mystery.weight": np.zeros(1), "fuse.weight": np.zeros(1), "z": np.zeros(1)}, tmp_path)
  with pytest.raises(ValueError, match=r"its 3 names \('mystery.weight', .*known: .*cgnet/official"):
    keymap.recognise(found, [*LAYOUTS, _LAYOUT])


def test_layout_names_are_unique_in_their_family():
  keys = [(layout.family, layout.name) for layout in LAYOUTS]
  assert len(keys) == len(set(keys))


def test_published_names_go_by_the_layout_that_knows_the_tree():
  tree = {"encoder": {"stage2": {"block1": {"local": {"kernel": np.zeros((3, 3, 1, 32))}}}}}
  path = "encoder/stage2/block1/local/kernel"
  assert published_names(tree, "mmseg")[path] == "backbone.level1.1.f_loc.weight"
  assert published_names(tree, "cgnet/official")[path] == "level2.0.F_loc.conv.weight"
  assert published_names(tree["encoder"], "mmseg") == {
    path.removeprefix("encoder/"): "backbone.level1.1.f_loc.weight"
  }
  with pytest.raises(ValueError, match=r"no layout called 'mmsge'; did you mean 'mmseg'"):
    published_names(tree, "mmsge")
  with pytest.raises(ValueError, match="no layout 'official' knows"):
    published_names({"encoder": {"strange": {"kernel": np.zeros(1)}}}, "official")
