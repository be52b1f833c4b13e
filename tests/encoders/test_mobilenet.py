"""MobileNetV2: exact count, channel rounding, dilation against striding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.encoders.mobilenet import MobileNetV2
from tests.encoders.checks import image, perturbed


def _shapes(model, size=129):
  picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), picture)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_strides(output_stride):
  features, _ = _shapes(MobileNetV2(output_stride=output_stride))
  sides = [128 // min(s, output_stride) + 1 for s in (4, 8, 16, 32)]
  assert [f.shape[1:] for f in features.values()] == [
    (n, n, c) for n, c in zip(sides, (24, 32, 96, 320), strict=True)
  ]


def test_channels_are_rounded_but_never_far_down():
  assert [MobileNetV2(width_multiplier=0.5).channels(w) for w in (16, 24, 32, 96)] == [8, 16, 16, 48]
  assert [MobileNetV2(width_multiplier=0.5, divisible_by=1).channels(w) for w in (16, 24)] == [8, 12]
  assert MobileNetV2(width_multiplier=1.4).channels(24) == 32
  assert MobileNetV2(width_multiplier=0.75).channels(16) == 16  # 12 → 8 would lose a third


@pytest.mark.parametrize("padding", ["centred", "same"])
def test_dilation_computes_what_striding_computes(padding):
  strided = MobileNetV2(depths=(1, 1, 1, 1, 1, 2, 1), width_multiplier=0.25, divisible_by=1, padding=padding)
  picture = image(65, 97)
  variables = jax.jit(functools.partial(strided.init, train=False))(jax.random.key(0), picture)
  variables = dict(variables) | {"params": perturbed(variables["params"], 0.05)}

  @functools.partial(jax.jit, static_argnums=0)
  def last(output_stride):
    return strided.clone(output_stride=output_stride).apply(variables, picture, train=False)["stage4"]

  full = last(32)
  np.testing.assert_allclose(last(8)[:, ::4, ::4], full, atol=1e-4 * float(np.abs(full).max()))


def test_mmsegmentations_first_block_is_already_wide():
  model = MobileNetV2(depths=(1,) * 7, output_stride=16, width_multiplier=0.25)
  picture = image(65, 65)
  variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), picture)

  @jax.jit
  def run(variables):
    models = [model.clone(contract_dilation=c) for c in (True, False)]
    return [m.apply(variables, picture, train=False)["stage4"] for m in models]

  outputs = run(variables)
  assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_bad_output_stride():
  with pytest.raises(ValueError, match="output_stride is 12, but MobileNetV2 gives 8, 16 or 32"):
    _shapes(MobileNetV2(output_stride=12))
