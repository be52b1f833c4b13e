"""SegNeXt and MSCAN from the published layouts: the reference's numbers, and what names tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.types import Preprocess
from tests import parity_cases
from tests.pretrained import parity

CASE = "mmseg-segnext_tiny-97x129"


@pytest.fixture(scope="module")
def case():
  """(state dict, images, reference outputs)."""
  return parity_cases.load(CASE)


def _load(state, tmp_path):
  np.savez(tmp_path / "x.npz", **state)
  return jaxseg.from_pretrained(tmp_path / "x.npz")


def _official(state):
  """The authors' names: the feed-forward's depthwise convolution is a module in a module."""
  return {name.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."): value for name, value in state.items()}


def test_parity_with_mmseg(case, tmp_path):
  state, images, reference = case
  net = _load(state, tmp_path)
  assert (net.arch, net.layout, dict(net.fields)) == ("segnext_tiny", "mmseg", {"num_classes": 150})
  logits, features = parity.run(net, images)
  parity.check_close(logits, reference["logits"])
  for i in range(4):
    parity.check_close(features[f"stage{i + 1}"], reference[f"feature{i}"])
  parity.check_round_trip(jaxseg.to_torch(net), state)
  assert set(net.unused) == {name for name in state if name.endswith("num_batches_tracked")}
  assert "Apache-2.0" in net.licence


@pytest.mark.usefixtures("quick_depthwise")
def test_official_names_without_bases(case, tmp_path):
  """The published files have no NMF bases, as the reference draws them; none are then written."""
  mmseg, images, _ = case
  state = {name: value for name, value in _official(mmseg).items() if not name.endswith(".bases")}
  net = _load(state, tmp_path)
  assert (net.arch, net.layout) == ("segnext_tiny", "official")
  assert "buffers" not in net.variables
  parity.check_round_trip(jaxseg.to_torch(net), state)
  first = parity.run(net, images)[0]
  np.testing.assert_array_equal(first, parity.run(net, images)[0])
  # From one layout into the other: only the spelling changes.
  other = jaxseg.to_torch(net, layout="mmseg")
  assert set(other) == {name for name in mmseg if not name.endswith(".bases")}


@pytest.mark.parametrize("spelling", ["official", "mmseg"])
@pytest.mark.usefixtures("quick_depthwise")
def test_classifier_files(case, tmp_path, spelling):
  state = {n.removeprefix("backbone."): v for n, v in case[0].items() if n.startswith("backbone.")}
  if spelling == "official":
    state = _official(state)
  rng = np.random.default_rng(0)
  state["head.weight"] = rng.standard_normal((1000, 256)).astype(np.float32)
  state["head.bias"] = rng.standard_normal(1000).astype(np.float32)
  net = _load(state, tmp_path)
  assert (net.arch, net.layout, dict(net.fields)) == (
    "mscan_tiny", f"{spelling}_backbone", {"num_classes": 1000},
  )  # fmt: skip
  parity.check_round_trip(jaxseg.to_torch(net), state)

  # Mean of the last stage, then the linear layer.
  features = case[2]["feature3"].values.reshape(case[2]["feature3"].shape)  # stored in full
  logits = parity.output(net, case[1])
  expected = features.mean((1, 2)) @ state["head.weight"].T + state["head.bias"]
  np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())

  del state["head.weight"], state["head.bias"]
  alone = _load(state, tmp_path)
  assert (alone.arch, dict(alone.fields)) == ("mscan_tiny", {})
  shapes = jax.tree.map(np.zeros_like, alone.variables)
  filled = jaxseg.load_pretrained(tmp_path / "x.npz", shapes)
  for a, b in zip(jax.tree.leaves(filled), jax.tree.leaves(alone.variables), strict=True):
    np.testing.assert_array_equal(a, b)


def _shapes(name):
  """The published names and shapes of a variant, from our own tree."""
  model = jaxseg.create_model(name, num_classes=19)
  variables = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0)
  )
  zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
  net = jaxseg.Net(model, zeros, Preprocess(), (), np.zeros((0, 3), np.uint8), arch=name)
  return {key: value.shape for key, value in jaxseg.to_torch(net, layout="official").items()}


@pytest.mark.parametrize("name", ["segnext_tiny", "segnext_small", "segnext_base", "segnext_large"])
def test_variants_are_told_by_shapes(name):
  from jaxseg.pretrained import segnext

  told = segnext.OFFICIAL.detect(_shapes(name))
  assert (told.arch, told.num_classes, told.encoder, told.decoder) == (name, 19, {}, {})


def test_unpublished_sizes_become_fields():
  from jaxseg.pretrained import segnext

  shapes = _shapes("segnext_tiny")
  shapes = {name: shape for name, shape in shapes.items() if "block3.4." not in name}
  told = segnext.OFFICIAL.detect(shapes)
  assert (told.arch, told.encoder) == ("segnext_tiny", {"depths": (3, 3, 4, 2)})
  shapes["decode_head.hamburger.ham.bases"] = (2, 128, 8)
  for name in [name for name in shapes if ".block1." in name and ".mlp.fc1." in name]:
    shapes[name] = (shapes[name][0] // 2, *shapes[name][1:])
  told = segnext.OFFICIAL.detect(shapes)
  assert (told.encoder["ffn_ratios"], told.decoder) == ((4, 8, 4, 4), {"rank": 8, "heads": 2})


def test_a_class_count_or_a_variant_that_the_file_has_not(case, tmp_path):
  state, *_ = case
  _load(state, tmp_path)
  with pytest.raises(ValueError, match=r"150 classes, not 7; .*keep=\('decoder/classifier/\.\*',\)"):
    jaxseg.from_pretrained(tmp_path / "x.npz", num_classes=7)
  with pytest.raises(ValueError, match=r"holds segnext_tiny, not segnext_small .*; leave arch out"):
    jaxseg.from_pretrained(tmp_path / "x.npz", arch="segnext_small")
  encoder = {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}
  np.savez(tmp_path / "e.npz", **encoder)
  for arch, hint in ((None, "head"), ("segnext_tiny", "decoder")):
    with pytest.raises(ValueError, match=rf"has no classifier; .*keep=\('{hint}/\.\*',\)"):
      jaxseg.from_pretrained(tmp_path / "e.npz", arch=arch, num_classes=7)


def test_one_wrong_tensor_is_reported_as_that(case, tmp_path):
  state = dict(case[0])
  state["backbone.norm3.weight"] = np.zeros(161, np.float32)
  with pytest.raises(ValueError, match=r"backbone.norm3.weight is \(161,\), the model wants \(160,\)"):
    _load(state, tmp_path)
