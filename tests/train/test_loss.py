"""The loss of a config: resolution, weights of the maps, and that none is forgotten."""

import jax
import ml_collections
import numpy as np
import pytest
import torch

from jaxseg.losses import cross_entropy, dice, ohem_cross_entropy
from jaxseg.train import make_loss


def outputs(*keys, size=(5, 6)):
  rng = np.random.default_rng(0)
  return {key: rng.standard_normal((2, *size, 4)).astype(np.float32) for key in keys}


def labels(shape=(2, 37, 45)):
  rng = np.random.default_rng(1)
  label = rng.integers(0, 4, shape).astype(np.int32)
  label[:, :3] = 255
  return label


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(5, 6), (74, 90)])
def test_logits_are_brought_to_the_label_as_torch_does(align_corners, size):
  x, y = outputs("logits", size=size)["logits"], labels()
  loss_fn = make_loss({"align_corners": align_corners})
  loss, grad = jax.value_and_grad(lambda x: loss_fn({"logits": x}, y)[0])(x)
  t = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
  up = torch.nn.functional.interpolate(t, y.shape[1:], mode="bilinear", align_corners=align_corners)
  expected = torch.nn.functional.cross_entropy(up, torch.tensor(y).long(), ignore_index=255)
  expected.backward()
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  np.testing.assert_allclose(grad, t.grad.numpy().transpose(0, 2, 3, 1), atol=1e-7)


def test_maps_are_weighted_and_their_losses_reported():
  maps, y = outputs("logits", "aux_logits", size=(37, 45)), labels()
  total, parts = make_loss({"weights": {"logits": 1.0, "aux_logits": 0.4}})(maps, y)
  np.testing.assert_allclose(parts["logits"], cross_entropy(maps["logits"], y), rtol=1e-6)
  np.testing.assert_allclose(parts["aux_logits"], cross_entropy(maps["aux_logits"], y), rtol=1e-6)
  np.testing.assert_allclose(total, parts["logits"] + 0.4 * parts["aux_logits"], rtol=1e-6)


def test_settings_reach_the_loss():
  maps, y = outputs("logits", size=(37, 45)), labels()
  settings = {
    "normalize_by": "weights",
    "class_weights": (1.0, 2.0, 3.0, 4.0),
    "label_smoothing": 0.1,
    "ignore_label": 3,
  }
  y = np.where(y == 255, 0, y)
  total, _ = make_loss(ml_collections.ConfigDict(settings))(maps, y)
  np.testing.assert_allclose(total, cross_entropy(maps["logits"], y, **settings), rtol=1e-6)
  assert abs(float(total - make_loss({})(maps, y)[0])) > 1e-3


def test_a_sum_of_losses_with_its_factors():
  maps, y = outputs("logits", "aux_logits", size=(37, 45)), labels()
  config = {
    "name": "ohem_cross_entropy+dice",
    "factors": (0.5, 3),
    "thresh": 0.4,
    "min_kept": 10,
    "normalize_by": "all",
    "smooth": 2,
    "weights": {"aux_logits": 0.4},
  }
  total, parts = make_loss(ml_collections.ConfigDict(config))(maps, y)
  for key, x in maps.items():
    hard = ohem_cross_entropy(x, y, thresh=0.4, min_kept=10, normalize_by="all")
    np.testing.assert_allclose(parts[key], 0.5 * hard + 3 * dice(x, y, smooth=2.0), rtol=1e-6)
  np.testing.assert_allclose(total, parts["logits"] + 0.4 * parts["aux_logits"], rtol=1e-6)
  both, _ = make_loss({"name": "cross_entropy + dice"})({"logits": maps["logits"]}, y)
  np.testing.assert_allclose(both, cross_entropy(maps["logits"], y) + dice(maps["logits"], y), rtol=1e-6)


def test_other_outputs_are_not_supervised():
  maps, y = outputs("logits"), labels()
  total, parts = make_loss({})({**maps, "attention": np.zeros((2, 1, 1, 4), np.float32)}, y)
  assert list(parts) == ["logits"]
  np.testing.assert_array_equal(total, parts["logits"])


@pytest.mark.parametrize(
  ("config", "keys", "sentence"),
  [
    ({}, ("logits", "aux_logits"), "the model gives aux_logits but loss.weights has no weight for it"),
    (
      {"weights": {"aux_logits": 0.4}},
      ("logits",),
      "loss.weights has aux_logits but the model does not give it",
    ),
  ],
)
def test_a_map_without_weight_and_a_weight_without_map_are_errors(config, keys, sentence):
  loss_fn = make_loss(config)
  with pytest.raises(ValueError, match=sentence):
    jax.eval_shape(lambda maps: loss_fn(maps, labels()), outputs(*keys))


@pytest.mark.parametrize(
  ("config", "sentence"),
  [
    ({"name": "cross_entropi"}, "no loss called 'cross_entropi'; did you mean 'cross_entropy'?"),
    ({"class_weight": (1,)}, "loss has no key 'class_weight'; did you mean 'class_weights'?"),
    ({"name": "cross_entropy+dize"}, "no loss called 'dize'; did you mean 'dice'?"),
    (
      {"name": "cross_entropy+dice", "factors": (1.0,)},
      "factors is (1.0,), expected 2 numbers, for cross_entropy, dice",
    ),
    ({"gamma": 3.0}, "loss.gamma is 3.0, but cross_entropy has no use for it; it belongs to focal"),
    ({"name": "focal", "gamma": -3.0}, "gamma is -3.0, expected at least 0"),
    ({"name": "focal", "gamma": "much"}, "loss.gamma is 'much', expected a value like 2.0"),
    ({"class_weights": ("a",)}, "loss.class_weights is ('a',), expected a sequence of numbers"),
  ],
)
def test_bad_losses(config, sentence):
  with pytest.raises(ValueError) as error:
    make_loss(config)
  assert sentence in str(error.value)
