"""The v3+ decoder: exact counts, both corner rules, what it reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.decoders.deeplabv3plus import DeepLabV3Plus
from tests.encoders.checks import image


def _features():
  return {"stage1": image(17, 25), "stage4": jnp.repeat(image(5, 7), 2, axis=-1)}


@pytest.mark.parametrize("separable", [False, True])
def test_corner_rules_differ_and_both_features_count(separable):
  features = _features()
  head = DeepLabV3Plus(num_classes=4, channels=8, low_level_channels=5, rates=(2,), separable=separable)
  variables = jax.jit(functools.partial(head.init, train=False))(jax.random.key(0), features)

  @jax.jit
  def run(features):
    heads = [head.clone(align_corners=a) for a in (False, True)]
    return [h.apply(variables, features, train=False) for h in heads]

  outer, inner = run(features)
  assert outer.shape == (1, 17, 25, 4) and np.abs(outer - inner).max() > 1e-3

  def total(features):
    weights = np.random.default_rng(0).standard_normal(outer.shape)
    return (head.apply(variables, features, train=False) * weights).sum()

  assert all(np.any(gradient) for gradient in jax.jit(jax.grad(total))(features).values())


def test_one_convolution_fewer():
  features = _features()
  head = DeepLabV3Plus(channels=8, rates=(), num_convs=1)
  y, variables = head.init_with_output(jax.random.key(0), features, train=False)
  assert y.shape == (1, 17, 25, 8) and "conv1" not in variables["params"]


def test_missing_stage_is_a_sentence():
  with pytest.raises(
    ValueError, match=r"DeepLabV3Plus reads \['stage4'\], but the encoder gives \['stage1'\]"
  ):
    DeepLabV3Plus(num_classes=2).init(jax.random.key(0), {"stage1": image(8, 8)}, train=False)
