"""Networks of other channels than three: made, filled from weights for three, saved, and used."""

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.config import load
from jaxseg.config.validate import validate
from jaxseg.crf import Settings
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.hub import Net
from jaxseg.types import Preprocess


def make(channels, arch="colour_only"):
  model = jaxseg.create_model(arch, num_classes=3, encoder=dict(in_channels=channels))
  image = np.zeros((1, 32, 32, channels), np.float32)
  return model, model.init(jax.random.key(0), image, train=False)


def net_of(channels):
  model, variables = make(channels)
  preprocess = Preprocess((100.0,) * channels, (50.0,) * channels)
  fields = dict(num_classes=3, encoder=dict(in_channels=channels))
  return Net(model, variables, preprocess, tuple("abc"), np.zeros((3, 3), np.uint8), "colour_only", fields)


@pytest.mark.parametrize("channels", [1, 5])
def test_weights_of_three_channels_on_request(tmp_path, channels):
  three = net_of(3)
  three.save_pretrained(tmp_path / "three")
  _, variables = make(channels)
  with pytest.raises(UserError, match=r"is for images of 3 channels, .* adapt_channels=True"):
    jaxseg.load_pretrained(tmp_path / "three", variables)
  filled = jaxseg.load_pretrained(tmp_path / "three", variables, adapt_channels=True)
  # An image whose channels are all alike is seen as the same by both.
  grey = np.random.default_rng(0).normal(size=(1, 32, 40, 1)).astype(np.float32)
  see = lambda net, variables, n: net.apply(variables, np.repeat(grey, n, -1), train=False)["logits"]  # noqa: E731
  if channels == 1:
    np.testing.assert_allclose(see(make(1)[0], filled, 1), see(three.model, three.variables, 3), atol=1e-5)
  old, new = (
    next(leaf for leaf in jax.tree.leaves(tree["params"]["encoder"]) if leaf.ndim == 4 and leaf.shape[2] == n)
    for tree, n in ((three.variables, 3), (filled, channels))
  )
  repeated = np.asarray(old)[:, :, [0, 1, 2, 0, 1]] * 0.6
  np.testing.assert_allclose(new, old.sum(2, keepdims=True) if channels == 1 else repeated, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 5])
def test_saved_read_and_used(tmp_path, channels):
  net_of(channels).save_pretrained(tmp_path)
  net = jaxseg.from_pretrained(tmp_path)
  assert net.preprocess.channels == channels
  image = np.random.default_rng(0).integers(0, 256, (40, 48, channels)).astype(np.uint8)
  np.save(tmp_path / "image.npy", image)
  label = net.predict(image)
  np.testing.assert_array_equal(net.predict(str(tmp_path / "image.npy")), label)
  np.testing.assert_array_equal(net.predict(image, flip=True, scales=(1.0, 1.5)).shape, label.shape)
  assert net.overlay(image, label).shape == (40, 48, 3)
  with pytest.raises(UserError, match=f"compares the colours of RGB images, and .* {channels} channels"):
    net.predict(image, crf=Settings())
  with pytest.raises(UserError, match=f"but this model takes {channels} channels"):
    net.predict(np.zeros((40, 48, 3), np.uint8))


def test_every_encoder_says_how_many_it_takes():
  first = {entry.func: name for name, entry in reversed(ENCODERS.items())}  # one of each class
  for name in first.values():
    model = jaxseg.create_model(name, num_classes=2, encoder=dict(in_channels=2))
    shapes = lambda n, model=model: jax.eval_shape(  # noqa: E731
      lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, n), np.float32), train=False)
    )
    assert shapes(2)
    with pytest.raises(UserError, match=r"expected \(batch, height, width, 2\)"):
      shapes(3)


def test_settings_that_do_not_agree():
  for change, sentence in {
    "data.channels=2": "config.preprocess.mean has 3 values for images of 2 channels",
    "data.color=photometric": "config.data.color is 'photometric', which is for RGB images",
    "data.name=voc": "config.data.channels is 1, but 'voc' has RGB images",
  }.items():
    config = load("cgnet_m3n21_folder", overrides=[tuple(change.split("="))])
    config.data.classes = ("a", "b")
    if "channels" not in change:
      config.data.channels, config.preprocess.mean, config.preprocess.std = 1, (90.0,), (50.0,)
    with pytest.raises(UserError, match=sentence):
      validate(config)
