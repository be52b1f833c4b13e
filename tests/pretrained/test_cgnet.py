"""CGNet from the published layouts: the reference's numbers, and what names and shapes tell."""

import cv2
import jax
import numpy as np
import pytest
import torch

import jaxseg
from jaxseg import pretrained
from jaxseg.pretrained import cgnet
from tests import parity_cases
from tests.pretrained.parity import check_close, check_round_trip, run

_FRAMES = ("camvid_val_0016E5_07959", "camvid_val_0016E5_08059", "camvid_val_0016E5_08159")


@pytest.fixture(scope="module")
def parity():
  """(state dict, images, reference outputs) of the mmseg case."""
  return parity_cases.load("mmseg-cgnet_m3n21-97x129")


@pytest.fixture(scope="module")
def official(shared):
  return jaxseg.from_pretrained(shared / "weights" / "cgnet" / "cityscapes_m3n21_trainset.npz")


def _picture(path) -> np.ndarray:
  return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]


def test_mmseg_parity(parity, tmp_path):
  state, images, reference = parity
  checkpoint = {"state_dict": {k: torch.from_numpy(v) for k, v in state.items()}, "meta": {}}
  torch.save(checkpoint, tmp_path / "x.pth")
  net = jaxseg.from_pretrained(tmp_path / "x.pth")
  assert (net.arch, net.layout, net.fields["num_classes"]) == ("cgnet_m3n21", "mmseg", 19)
  logits, features = run(net, images)
  check_close(logits, reference["logits"])
  for i in range(3):
    check_close(features[f"stage{i + 1}"], reference[f"feature{i}"])
  check_round_trip(jaxseg.to_torch(net), state)
  assert set(net.unused) == {name for name in state if name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("frame", _FRAMES)
def test_the_authors_weights_on_real_frames(official, shared, frame):
  folder = shared / "weights" / "cgnet"
  image = _picture(folder / f"{frame}.png")
  reference = np.load(folder / f"{frame}__logits_os8.npy").transpose(1, 2, 0)
  apply = jax.jit(lambda v, x: official.model.apply(v, x, train=False)["logits"])
  logits = np.asarray(apply(official.variables, official.preprocess(image)[None]))[0]
  assert np.abs(logits - reference).max() <= 1e-3
  labels = official.predict(image)
  assert (labels.dtype, labels.shape) == (np.int32, image.shape[:2])
  expected = cv2.imread(str(folder / f"{frame}__argmax.png"), cv2.IMREAD_UNCHANGED)
  assert np.mean(labels == expected) >= 0.999


def test_the_authors_weights_come_back_to_the_bit_denormals_included(official, shared):
  source = dict(np.load(shared / "weights" / "cgnet" / "cityscapes_m3n21_trainset.npz"))
  tiny = np.finfo(np.float32).tiny
  assert any(np.any((value != 0) & (np.abs(value) < tiny)) for value in source.values())
  back = jaxseg.to_torch(official, layout="official")
  assert list(back) == list(source)
  for name, value in source.items():
    assert back[name].tobytes() == value.tobytes(), name
  assert len(official.classes) == 19 and official.classes[0] == "road"
  assert official.preprocess.mean == (72.78043, 83.212006, 73.45284)


def test_the_other_layout_loads_and_means_the_same(official, parity, tmp_path):
  """Official → mmseg: the classifier's bias, which the authors' has not, is written as zeros."""
  state = jaxseg.to_torch(official, layout="mmseg")
  assert not np.any(state["decode_head.conv_seg.bias"])
  assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in parity[0].items()}
  np.savez(tmp_path / "x.npz", **state)
  net = jaxseg.from_pretrained(tmp_path / "x.npz")
  assert net.layout == "mmseg"
  for name in ("stage2", "stage3", "join3"):
    ours, theirs = official.variables["params"]["encoder"][name], net.variables["params"]["encoder"][name]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("layout", ["official", "mmseg"])
@pytest.mark.parametrize(
  "encoder",
  [
    dict(num_blocks=(3, 11)),
    dict(num_blocks=(1, 2), widths=(8, 16, 32), reductions=(4, 4)),
    dict(widths=(16, 32, 48), num_blocks=(2, 1), reductions=(8, 8)),
    dict(num_blocks=(2, 2), input_injection=False, global_context=False),
    dict(num_blocks=(2, 2), activation="relu"),
  ],
)
def test_names_and_shapes_tell_the_variant(layout, encoder):
  num_classes = 7
  decoder = dict(use_bias=layout == "mmseg")
  model = jaxseg.create_model("cgnet_m3n21", num_classes=num_classes, encoder=encoder, decoder=decoder)
  shapes = _published_shapes(model, layout)
  told = {"official": cgnet.OFFICIAL, "mmseg": cgnet.MMSEG}[layout].detect(shapes)
  assert told.num_classes == num_classes
  again = jaxseg.create_model(
    told.arch, num_classes=told.num_classes, encoder=told.encoder, decoder=told.decoder
  )
  # A field that no tensor shows (the reduction without a global context) may stay at its default.
  assert _published_shapes(again, layout) == shapes
  assert dict(told.encoder) == encoder


def _published_shapes(model, layout):
  from jaxseg.hub.loading import abstract_variables  # keeps what it traced: an equal model costs nothing
  from jaxseg.pretrained import keymap, tree

  leaves = tree.flat(abstract_variables(model))
  arrays = {tree.below(path): np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}
  chosen = {"official": cgnet.OFFICIAL, "mmseg": cgnet.MMSEG}[layout]
  return {name: value.shape for name, value in keymap.write_leaves(chosen, arrays, {}).items()}


@pytest.mark.parametrize("layout", ["official", "mmseg"])
def test_a_path_that_is_not_of_the_system_has_no_name(layout):
  publish = pretrained.layout_of("cgnet_m3n21", layout).publish
  assert publish("encoder/join1/norm/scale") and publish("encoder/stem2/conv/kernel")
  for path in (
    "kernel",
    "head/kernel",
    "encoder/kernel",
    "encoder/stem3/conv/kernel",
    "encoder/stem0/gate/kernel",
    "encoder/join4/norm/scale",
    "encoder/join1/norm/count",
    "encoder/stage2/block0/local/gate",
    "encoder/stage2/block0/gate/kernel",
    "decoder/conv0/kernel",
  ):
    assert publish(path) is None, path


def test_eleven_classes_of_the_official_layout_are_camvid():
  record = cgnet.OFFICIAL.record(11)
  assert record.dataset == "camvid"
  assert record.preprocess.mean == (105.6578, 103.3298, 99.6254)
  assert record.preprocess.std == (1.0, 1.0, 1.0)


def test_one_tensor_of_another_shape_is_named(official, shared, tmp_path):
  state = dict(np.load(shared / "weights" / "cgnet" / "cityscapes_m3n21_trainset.npz"))
  for name in ("level1_0.conv.weight", "level2_0.F_glo.fc.0.weight", "level3.4.conv1x1.conv.weight"):
    changed = state | {name: np.zeros((5, *state[name].shape[1:]), np.float32)}
    np.savez(tmp_path / "x.npz", **changed)
    with pytest.raises(ValueError, match=r"other shape \(1\): " + name.replace(".", r"\.")):
      jaxseg.from_pretrained(tmp_path / "x.npz")
