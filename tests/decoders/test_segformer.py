"""The all-MLP decoder: exact parameter counts, variants against the plain definition, gradients."""

import jax
import numpy as np
import pytest

from jaxseg.decoders.segformer import AllMLP
from jaxseg.layers.resize import resize
from tests.encoders.checks import apply, init, perturbed

VARIANTS = {
  "nvlabs": dict(),
  "hf": dict(dropout="elements"),
  "mmseg": dict(projection="conv", concat_order="fine_to_coarse"),
}
TINY = dict(num_classes=3, width=16, dropout_rate=0.0)


def _features():
  rng = np.random.default_rng(0)
  shapes = {"stage1": (17, 21, 4), "stage2": (9, 11, 5), "stage3": (5, 6, 6), "stage4": (3, 3, 27)}
  return {name: rng.standard_normal((2, *shape)).astype(np.float32) for name, shape in shapes.items()}


def _definition(variables, features, projection, order):
  """Project, resize, concatenate, convolve, normalise with running statistics, ReLU, classify."""
  p, s = variables["params"], variables["batch_stats"]

  def norm(x, name):
    mean, var = s[name]["mean"], s[name]["var"]
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) * p[name]["scale"] + p[name]["bias"], 0)

  levels = []
  for name in sorted(features, reverse=order == "coarse_to_fine"):
    w = p[f"project_{name}"]
    if projection == "linear":
      x = features[name] @ w["kernel"] + w["bias"]
    else:
      x = norm(features[name] @ w["kernel"][0, 0], f"project_norm_{name}")
    levels.append(resize(x, (17, 21)))
  x = norm(np.concatenate(levels, -1) @ p["fuse"]["kernel"][0, 0], "fuse_norm")
  return x @ p["classifier"]["kernel"][0, 0] + p["classifier"]["bias"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_plain_definition(variant):
  fields = VARIANTS[variant]
  model, features = AllMLP(**TINY, **fields), _features()
  variables = init(model, features)
  variables = {
    "params": perturbed(variables["params"]),
    "batch_stats": jax.tree.map(lambda x: x + 0.1, variables["batch_stats"]),
  }
  expected = _definition(
    variables, features, fields.get("projection", "linear"), fields.get("concat_order", "coarse_to_fine")
  )
  np.testing.assert_allclose(
    apply(model, variables, features), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
  )


def test_dropout_of_channels_or_elements():
  features = _features()
  zero = {}
  for dropout in ("channels", "elements"):
    model = AllMLP(width=16, dropout=dropout, dropout_rate=0.5)
    variables = init(model, features)
    y, _ = model.apply(
      variables, features, train=True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
    )
    assert y.shape == (2, 17, 21, 16)
    zero[dropout] = np.all(np.asarray(y) == 0, axis=(1, 2)).mean()
  assert 0.2 < zero["channels"] < 0.8
  assert zero["elements"] == 0


def test_missing_stage_is_named():
  features = _features()
  del features["stage3"]
  with pytest.raises(ValueError, match=r"AllMLP reads \['stage3'\]"):
    init(AllMLP(**TINY), features)
