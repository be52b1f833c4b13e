"""The shifted depthwise convolution equals its definition, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.kernels.depthwise import depthwise_conv, depthwise_conv_reference

CASES = {
  "3x3": dict(kernel=(3, 3), padding=((1, 1), (1, 1))),
  "3x3 rate 4": dict(kernel=(3, 3), padding=((4, 4), (4, 4)), dilation=(4, 4)),
  "1x21 strip": dict(kernel=(1, 21), padding=((0, 0), (10, 10))),
  "21x1 strip": dict(kernel=(21, 1), padding=((10, 10), (0, 0))),
  "5x5 no padding": dict(kernel=(5, 5), padding=((0, 0), (0, 0))),
  "3x3 stride 2, TF's uneven padding": dict(kernel=(3, 3), padding=((0, 1), (0, 1)), strides=(2, 2)),
  "3x3 stride 2": dict(kernel=(3, 3), padding=((1, 1), (1, 1)), strides=(2, 2)),
  "2x3, stride (1, 3), rate (3, 1)": dict(
    kernel=(2, 3), padding=((2, 0), (1, 2)), strides=(1, 3), dilation=(3, 1)
  ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_definition(case):
  case = dict(case)
  kernel = jax.random.normal(jax.random.key(0), (*case.pop("kernel"), 1, 5))
  x = jax.random.normal(jax.random.key(1), (2, 23, 26, 5))

  def both(function):
    y, pull = jax.vjp(lambda x, kernel: function(x, kernel, **case), x, kernel)
    dy = jax.random.normal(jax.random.key(2), y.shape)
    return y, *pull(dy)

  for ours, reference in zip(both(depthwise_conv), both(depthwise_conv_reference), strict=True):
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-5 * float(jnp.abs(reference).max()))


def test_bfloat16_accumulates_weight_gradients_in_float32():
  x = jnp.ones((4, 64, 64, 2), jnp.bfloat16)
  kernel = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  gradient = jax.grad(lambda k: depthwise_conv(x, k).astype(jnp.float32).sum())(kernel)
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(gradient, np.float32), 4 * 64 * 64)
