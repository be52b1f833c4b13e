"""Xception-65: exact count, features before the strides, dilation against striding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.encoders.xception import Unit, Xception
from tests.encoders.checks import image


def _shapes(model, size=129):
  picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), picture)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_strides(output_stride):
  features, _ = _shapes(Xception(depths=(1,), output_stride=output_stride))
  sides = [128 // min(s, output_stride) + 1 for s in (4, 8, 16, 32)]
  channels = (256, 728, 728, 2048)
  assert [f.shape[1:] for f in features.values()] == [(n, n, c) for n, c in zip(sides, channels, strict=True)]


@pytest.mark.usefixtures("quick_depthwise")
def test_dilation_computes_what_striding_computes():
  """One middle unit; sampled every other pixel, the network at stride 16 is the one at 32, and so on."""
  picture = image(65, 65)
  strided = Xception(depths=(1,), output_stride=32)
  variables = jax.jit(functools.partial(strided.init, train=False))(jax.random.key(0), picture)

  @functools.partial(jax.jit, static_argnums=0)
  def last(output_stride):
    return strided.clone(output_stride=output_stride).apply(variables, picture, train=False)["stage4"]

  full = last(32)
  np.testing.assert_allclose(last(8)[:, ::4, ::4], full, atol=1e-4 * float(np.abs(full).max()))


def test_unit_returns_the_map_before_the_stride():
  unit = Unit((4, 5, 6), 2, shortcut="conv")
  x = jnp.ones((1, 9, 9, 3))
  (y, before), variables = unit.init_with_output(jax.random.key(0), x, train=False)
  assert (y.shape, before.shape) == ((1, 5, 5, 6), (1, 9, 9, 5))
  assert set(variables["params"]) == {"conv0", "conv1", "conv2", "shortcut"}


def test_bad_output_stride():
  with pytest.raises(ValueError, match="output_stride is 64, but Xception gives 8, 16 or 32"):
    _shapes(Xception(output_stride=64))
