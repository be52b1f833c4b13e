"""SegFormer and MiT from the published layouts: the references' numbers, and what names tell."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import jaxseg
from jaxseg.pretrained import segformer
from jaxseg.types import Preprocess
from tests import parity_cases
from tests.pretrained import parity


def _load(state, tmp_path):
  np.savez(tmp_path / "x.npz", **state)
  return jaxseg.from_pretrained(tmp_path / "x.npz")


@pytest.mark.parametrize(
  ("case", "fields"),
  [
    (
      "mmseg-segformer_b0-97x129",
      {
        "num_classes": 150,
        "encoder": {"epsilons": "mmseg"},
        "decoder": {"projection": "conv", "concat_order": "fine_to_coarse"},
      },
    ),
    (
      "hf-segformer_b0-96x128",
      {"num_classes": 150, "encoder": {"epsilons": "hf"}, "decoder": {"dropout": "elements"}},
    ),
  ],
)
def test_parity(tmp_path, case, fields):
  state, images, reference = parity_cases.load(case)
  net = _load(state, tmp_path)
  assert (net.arch, net.layout, dict(net.fields)) == ("segformer_b0", case.split("-")[0], fields)
  logits, features = parity.run(net, images)
  parity.check_close(logits, reference["logits"])
  for i in range(4):
    if f"feature{i}" in reference:
      parity.check_close(features[f"stage{i + 1}"], reference[f"feature{i}"])
  parity.check_round_trip(jaxseg.to_torch(net), state)
  assert "non-commercial" in net.licence


def _random(model):
  """Weights that leave no branch silent, instead of transformers' initial ones."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      fan_in = max(int(np.prod(p.shape[1:])), 1)
      noise = torch.randn(p.shape, generator=generator)
      p.copy_(noise * (1.3 / fan_in) ** 0.5 if p.ndim > 1 else name.endswith("weight") + 0.1 * noise)
    for name, b in model.named_buffers():
      if name.endswith("running_var"):
        b.copy_(0.5 + torch.rand(b.shape, generator=generator))
  return model.eval()


B1 = dict(hidden_sizes=[64, 128, 320, 512], depths=[2, 2, 2, 2], decoder_hidden_size=256, num_labels=21)
# Heads that no published model has: only the config says them.
OWN = dict(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_attention_heads=[2, 2, 3, 8], num_labels=5)


@pytest.fixture(scope="module", params=["SegmentationModel", "Model", "Classifier"])
def saved(request, tmp_path_factory):
  """(transformers model of B1 size, the directory its save_pretrained wrote)."""
  cls = {
    "SegmentationModel": transformers.SegformerForSemanticSegmentation,
    "Model": transformers.SegformerModel,
    "Classifier": transformers.SegformerForImageClassification,
  }[request.param]
  model = _random(cls(transformers.SegformerConfig(**B1)))
  directory = tmp_path_factory.mktemp("saved")
  model.save_pretrained(directory)
  return model, directory


def test_directory_of_transformers_at_an_odd_size(saved, tmp_path):
  model, directory = saved
  net = jaxseg.from_pretrained(directory)
  assert net.layout in ("hf4", "hf4_backbone")  # the hub's names, which save_pretrained writes
  images = np.random.default_rng(0).standard_normal((1, 65, 99, 3)).astype(np.float32)
  with torch.no_grad():
    theirs = model(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2)))
  ours = parity.output(net, images)
  if isinstance(model, transformers.SegformerForImageClassification):
    assert net.arch == "mit_b1"
    expected, ours = theirs.logits.numpy(), np.asarray(ours)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
  elif isinstance(model, transformers.SegformerForSemanticSegmentation):
    assert (net.arch, net.fields["num_classes"]) == ("segformer_b1", 21)
    parity.check_close(ours["logits"], theirs.logits.numpy().transpose(0, 2, 3, 1))
  else:
    assert (net.arch, "num_classes" in net.fields) == ("mit_b1", False)
    parity.check_close(ours["stage4"], theirs.last_hidden_state.numpy().transpose(0, 2, 3, 1))

  # The names that transformers 5 has in memory: its state dict loads, and comes back.
  state = {name: value.numpy() for name, value in model.state_dict().items()}
  again = _load(state, tmp_path)
  assert again.layout == net.layout.replace("hf4", "hf")
  for a, b in zip(jax.tree.leaves(again.variables), jax.tree.leaves(net.variables), strict=True):
    np.testing.assert_array_equal(a, b)
  back = jaxseg.to_torch(net, layout=again.layout)
  model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in back.items()}, strict=True)


def _abstract(name, **fields):
  """A net of zeros that take no memory."""
  model = jaxseg.create_model(name, num_classes=19, **fields)
  variables = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0)
  )
  zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
  return jaxseg.Net(model, zeros, Preprocess(), (), np.zeros((0, 3), np.uint8), arch=name)


def test_a_size_of_somebodys_own(tmp_path):
  config = transformers.SegformerConfig(**OWN, decoder_hidden_size=32, mlp_ratios=[2, 4, 2, 3])
  model = _random(transformers.SegformerForSemanticSegmentation(config))
  model.save_pretrained(tmp_path)
  net = jaxseg.from_pretrained(tmp_path)
  assert net.model.encoder.num_heads == (2, 2, 3, 8) and "encoder.num_heads" not in net.assumed
  images = np.random.default_rng(0).standard_normal((1, 65, 99, 3)).astype(np.float32)
  with torch.no_grad():
    theirs = model(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2))).logits
  parity.check_close(parity.output(net, images)["logits"], theirs.numpy().transpose(0, 2, 3, 1))

  # The arrays alone tell everything but the heads, which are taken to be as wide as the first stage.
  alone = jaxseg.from_pretrained((tmp_path / "model.safetensors").rename(tmp_path / "alone.safetensors"))
  assert alone.model.encoder.num_heads == (1, 2, 3, 4) and "encoder.num_heads" in alone.assumed
  config = json.loads((tmp_path / "config.json").read_text()) | {"hidden_act": "relu"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"config.json has hidden_act = .relu.; MiT here has .gelu"):
    jaxseg.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", [f"segformer_b{i}" for i in range(6)])
def test_variants_are_told_by_shapes(name):
  state = jaxseg.to_torch(_abstract(name), layout="nvlabs")
  told = segformer.NVLABS.detect({key: value.shape for key, value in state.items()})
  assert (told.arch, told.num_classes, dict(told.encoder), dict(told.decoder)) == (name, 19, {}, {})


def test_mmseg_head_of_b2_is_narrow():
  net = _abstract("segformer_b2", decoder=dict(width=256, projection="conv", concat_order="fine_to_coarse"))
  state = jaxseg.to_torch(net, layout="mmseg")
  told = segformer.MMSEG.detect({key: value.shape for key, value in state.items()})
  assert told.arch == "segformer_b2" and told.decoder["width"] == 256


@pytest.fixture(scope="module")
def nvlabs():
  """A state dict of NVlabs' names, written from the layout's description and random arrays."""
  rng = np.random.default_rng(0)

  def array(*shape):
    return rng.standard_normal(shape).astype(np.float32) * 0.2

  state = {}

  def put(name, *shape):
    state[f"{name}.weight"], state[f"{name}.bias"] = array(*shape), array(shape[0])

  dims, reductions, inside = (32, 64, 160, 256), (8, 4, 2, 1), 3
  for s, (dim, reduction) in enumerate(zip(dims, reductions, strict=True), 1):
    put(f"backbone.patch_embed{s}.proj", dim, inside, *((7, 7) if s == 1 else (3, 3)))
    put(f"backbone.patch_embed{s}.norm", dim)
    inside = dim
    for b in range(2):
      at = f"backbone.block{s}.{b}"
      put(f"{at}.norm1", dim)
      put(f"{at}.attn.q", dim, dim)
      put(f"{at}.attn.kv", 2 * dim, dim)
      put(f"{at}.attn.proj", dim, dim)
      if reduction > 1:
        put(f"{at}.attn.sr", dim, dim, reduction, reduction)
        put(f"{at}.attn.norm", dim)
      put(f"{at}.norm2", dim)
      put(f"{at}.mlp.fc1", 4 * dim, dim)
      put(f"{at}.mlp.dwconv.dwconv", 4 * dim, 1, 3, 3)
      put(f"{at}.mlp.fc2", dim, 4 * dim)
    put(f"backbone.norm{s}", dim)
    put(f"decode_head.linear_c{s}.proj", 256, dim)
  put("decode_head.conv_seg", 19, 128, 1, 1)
  state["decode_head.linear_fuse.conv.weight"] = array(256, 1024, 1, 1)
  put("decode_head.linear_fuse.bn", 256)
  state["decode_head.linear_fuse.bn.running_mean"] = array(256)
  state["decode_head.linear_fuse.bn.running_var"] = 1 + np.abs(array(256))
  state["decode_head.linear_fuse.bn.num_batches_tracked"] = np.zeros((), np.int64)
  put("decode_head.linear_pred", 19, 256, 1, 1)
  return state


def test_nvlabs_fused_key_value_and_unused_classifier(nvlabs, tmp_path):
  net = _load(nvlabs, tmp_path)
  assert (net.arch, net.layout, dict(net.fields)) == ("segformer_b0", "nvlabs", {"num_classes": 19})
  # The first half of the rows of `kv` makes keys, the second values.
  attention = net.variables["params"]["encoder"]["stage2"]["block1"]["attention"]
  fused = nvlabs["backbone.block2.1.attn.kv.weight"]
  np.testing.assert_array_equal(attention["key"]["kernel"], fused[:64].T)
  np.testing.assert_array_equal(attention["value"]["kernel"], fused[64:].T)
  # The coarsest level comes first in the fusion.
  assert set(net.unused) == {
    "decode_head.conv_seg.weight",
    "decode_head.conv_seg.bias",
    "decode_head.linear_fuse.bn.num_batches_tracked",
  }
  back = jaxseg.to_torch(net)
  assert not back["decode_head.conv_seg.weight"].any()
  kept = {name: value for name, value in nvlabs.items() if "conv_seg" not in name}
  parity.check_round_trip({n: v for n, v in back.items() if n in kept}, kept)
  assert back["decode_head.conv_seg.weight"].shape == (19, 128, 1, 1)


def test_same_weights_in_nvlabs_and_hf_names_differ_by_the_epsilons_only(nvlabs, tmp_path):
  net = _load(nvlabs, tmp_path)
  hf = _load(jaxseg.to_torch(net, layout="hf"), tmp_path)
  assert hf.layout == "hf"
  images = np.random.default_rng(1).standard_normal((1, 64, 64, 3)).astype(np.float32)
  ours, theirs = (np.asarray(parity.output(n, images)["logits"]) for n in (net, hf))
  assert 0 < np.abs(ours - theirs).max() < 1e-2 * np.abs(ours).max()


def test_a_head_of_another_kind_is_refused(nvlabs, tmp_path):
  """NVlabs' linear projections have no place in mmsegmentation's head."""
  net = _load(nvlabs, tmp_path)
  with pytest.raises(ValueError, match=r"layout segformer/mmseg has no name for .*project_stage"):
    jaxseg.to_torch(net, layout="mmseg")


def test_imagenet_encoder_of_nvlabs(nvlabs, tmp_path):
  state = {n.removeprefix("backbone."): v for n, v in nvlabs.items() if n.startswith("backbone.")}
  state |= {"head.weight": np.ones((1000, 256), np.float32), "head.bias": np.ones(1000, np.float32)}
  net = _load(state, tmp_path)
  assert (net.arch, net.layout, net.fields["num_classes"]) == ("mit_b0", "nvlabs_backbone", 1000)
  parity.check_round_trip(jaxseg.to_torch(net), state)
  # Into the segmentation model, whose decoder keeps its own values.
  images = np.zeros((1, 64, 64, 3), np.float32)
  model = jaxseg.create_model("segformer_b0", num_classes=3)
  whole = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
  filled = jaxseg.load_pretrained(tmp_path / "x.npz", whole, keep=("decoder/.*",))
  np.testing.assert_array_equal(
    filled["params"]["encoder"]["stage4"]["norm"]["scale"], nvlabs["backbone.norm4.weight"]
  )
