"""DeepLab from the published layouts: the reference's numbers, and what names and shapes tell."""

import hashlib

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.pretrained import deeplab, keymap, resnet, tree, vgg
from tests import filled, parity_cases
from tests.pretrained.parity import check_close, check_round_trip


def _load(tmp_path, case):
  state, images, reference = parity_cases.load(case)
  np.savez(tmp_path / "x.npz", **state)
  return state, images, reference, jaxseg.from_pretrained(tmp_path / "x.npz")


@pytest.mark.parametrize("system", ["deeplabv3_resnet50", "deeplabv3plus_resnet50"])
def test_mmseg_parity(tmp_path, system):
  state, images, reference, net = _load(tmp_path, f"mmseg-{system}-65x97")
  assert (net.arch, net.layout, net.fields["num_classes"]) == (system, "mmseg", 21)
  assert {"encoder.output_stride", "decoder.rates", "preprocess"} <= set(net.assumed)

  @jax.jit
  def run(variables, images):
    out = net.model.apply(variables, images, train=False)
    return out, net.model.apply(variables, images, train=False, method="features")

  out, features = run(net.variables, images)
  check_close(out["logits"], reference["logits"])
  check_close(out["aux_logits"], reference["aux_logits"])
  for i in range(4):
    check_close(features[f"stage{i + 1}"], reference[f"feature{i}"])
  check_round_trip(jaxseg.to_torch(net), state)


def test_kazuto1011_parity(tmp_path):
  """One scale, and the maximum over three, whose pixels lie 1 / scale apart exactly."""
  state, images, reference, net = _load(tmp_path, "kazuto1011-deeplabv2_resnet101-97x129")
  assert (net.arch, net.layout, net.model.scales) == ("deeplabv2_resnet101", "kazuto1011", (1.0, 0.75, 0.5))
  assert net.preprocess.channel_order == "bgr" and net.preprocess.mean == (122.675, 116.669, 104.008)
  single = net.model.clone(scales=(1.0,))

  @jax.jit
  def run(variables, images):
    return [m.apply(variables, images, train=False)["logits"] for m in (net.model, single)]

  fused, logits = run(net.variables, images)
  check_close(fused, reference["logits_msc"])
  check_close(logits, reference["logits"])
  check_round_trip(jaxseg.to_torch(net), state)

  bare = {name.removeprefix("base."): value for name, value in state.items()}
  np.savez(tmp_path / "bare.npz", **bare)
  assert jaxseg.from_pretrained(tmp_path / "bare.npz").model.scales == (1.0,)


def _published(model, layout: keymap.Layout) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the model in a layout, counters included."""
  picture = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  init = lambda key, image: model.init(key, image, train=False)  # noqa: E731
  leaves = tree.flat(jax.eval_shape(init, jax.random.key(0), picture))
  paths = tree.canonical(leaves)
  arrays = {paths[path]: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
  return {name: value.shape for name, value in keymap.write_leaves(layout, arrays, {}).items()}


_TORCHVISION = dict(
  encoder=dict(output_stride=8, contract_dilation=True, multi_grid=()),
  decoder=dict(extra_conv=True, concat_order="pool_last", rates=(12, 24, 36)),
)


@pytest.mark.parametrize(
  "name, layout, fields, expected",
  [
    ("deeplabv3_resnet50", deeplab.TORCHVISION, _TORCHVISION, "52394066aeb32367"),
    ("deeplabv3_resnet101", deeplab.TORCHVISION, _TORCHVISION, "7d712749fb30c3c2"),
    ("resnet50", resnet.TORCHVISION_BACKBONE, {}, "a87e91cd6bd1f939"),
  ],
)
def test_names_and_shapes_are_torchvisions(name, layout, fields, expected):
  """The digest is of torchvision 0.28's own state dict, sorted, one "name shape" a line."""
  if name.startswith("deeplab"):
    fields = {**fields, "aux_decoder": dict(stage="stage3")}
  model = jaxseg.create_model(name, num_classes=21 if fields else 1000, **fields)
  lines = sorted(f"{name} {shape}" for name, shape in _published(model, layout).items())
  assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == expected


_MMSEG = dict(channels=512, fuse_kernel=3, dropout="channels", dropout_rate=0.1, rates=(12, 24, 36))
_DILATED = dict(output_stride=8, contract_dilation=True, multi_grid=())


@pytest.mark.parametrize(
  "layout, name, fields",
  [
    (deeplab.MMSEG, "deeplabv3_resnet101", dict(encoder=_DILATED | dict(stem="v1c"), decoder=_MMSEG)),
    (
      deeplab.MMSEG,
      "deeplabv3plus_resnet50",
      dict(
        encoder=_DILATED | dict(stage_sizes=(1, 2, 3, 1), width=16),
        decoder=_MMSEG | dict(separable=True, aspp_dropout_rate=0.0, low_level_channels=24, channels=128),
      ),
    ),
    (
      deeplab.TORCHVISION,
      "deeplabv3_resnet101",
      dict(
        encoder=_DILATED,
        decoder=_TORCHVISION["decoder"] | dict(channels=64, dropout_rate=0.5),
        aux_decoder=dict(stage="stage3", num_convs=1, dropout_rate=0.1, channels=32),
      ),
    ),
    (
      deeplab.KAZUTO,
      "deeplabv2_resnet101",
      dict(encoder=dict(stage_sizes=(1, 1, 2, 1), width=16), scales=(1.0, 0.75, 0.5)),
    ),
  ],
)
def test_names_and_shapes_tell_the_variant(layout, name, fields):
  shapes = _published(jaxseg.create_model(name, num_classes=7, **fields), layout)
  told = layout.detect(shapes)
  parts = {"encoder": told.encoder, "decoder": told.decoder, "aux_decoder": told.aux_decoder}
  assert (told.arch, told.num_classes) == (name, 7)
  assert {key: dict(value) for key, value in parts.items() if value} == {
    key: value for key, value in fields.items() if key != "scales"
  }
  assert told.scales == fields.get("scales")


def _save(path, shapes) -> None:
  np.savez(path, **{name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def test_encoder_of_a_whole_model_and_given_fields(tmp_path):
  """The user's word on what no tensor shows is taken, and no longer listed as assumed."""
  fields = dict(
    encoder=_DILATED | dict(stage_sizes=(1, 1, 1, 1), width=8), decoder=_MMSEG | dict(channels=16)
  )
  _save(
    tmp_path / "x.npz",
    _published(jaxseg.create_model("deeplabv3_resnet50", num_classes=3, **fields), deeplab.MMSEG),
  )
  net = jaxseg.from_pretrained(
    tmp_path / "x.npz", encoder=dict(output_stride=16), decoder=dict(rates=(6, 12, 18))
  )
  assert net.model.encoder.output_stride == 16 and net.model.decoder.rates == (6, 12, 18)
  assert {"encoder.output_stride", "decoder.rates"}.isdisjoint(net.assumed)
  assert "encoder.multi_grid" in net.assumed
  encoder = jaxseg.from_pretrained(tmp_path / "x.npz", arch="resnet50")
  assert set(encoder.variables["params"]) == set(net.variables["params"]["encoder"])


def test_weights_of_another_head_start_a_deeplab_v2(tmp_path):
  """kazuto1011's initial weights: a ResNet-101 from COCO, whose classifier is not ASPP."""
  encoder = dict(stage_sizes=(1, 1, 1, 1), width=8)
  model = jaxseg.create_model("deeplabv2_resnet101", num_classes=3, encoder=encoder)
  shapes = {n: s for n, s in _published(model, deeplab.KAZUTO_SINGLE).items() if not n.startswith("aspp.")}
  _save(tmp_path / "x.npz", shapes | {"fc.weight": (91, 256, 1, 1), "fc.bias": (91,)})
  variables = filled.variables(model, np.zeros((1, 33, 33, 3), np.float32))
  started = jaxseg.load_pretrained(tmp_path / "x.npz", variables, keep=("decoder/.*",))
  assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(started["params"]["encoder"]))
  jax.tree.map(np.testing.assert_array_equal, started["params"]["decoder"], variables["params"]["decoder"])


def test_imagenet_vgg_starts_a_deeplab(tmp_path):
  """Convolutions of torchvision's into DeepLab v1, whose head keeps its own values."""
  widths = dict(widths=(4, 6, 8, 10, 12))
  encoder = jaxseg.create_model("vgg16", encoder=widths)
  shapes = _published(encoder, vgg.TORCHVISION_VGG) | {
    "classifier.0.weight": (8, 9),
    "classifier.0.bias": (8,),
  }
  assert {"features.0.weight", "features.28.bias"} <= set(shapes)
  _save(tmp_path / "x.npz", shapes)
  model = jaxseg.create_model("deeplabv1_vgg16", num_classes=3, encoder=widths, decoder=dict(width=8))
  variables = model.init(jax.random.key(0), np.zeros((1, 33, 33, 3), np.float32), train=False)
  filled = jaxseg.load_pretrained(tmp_path / "x.npz", variables, keep=("decoder/.*",))
  assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(filled["params"]["encoder"]))
  jax.tree.map(np.testing.assert_array_equal, filled["params"]["decoder"], variables["params"]["decoder"])
