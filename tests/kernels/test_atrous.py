"""The nine products over valid windows are the dilated convolution, at every rate and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.kernels.atrous import atrous_conv, atrous_conv_reference, by_taps, pays_off


# Rates inside the map, larger than its rows, larger than both, and a map of one row.
@pytest.mark.parametrize(
  "size, rate", [((9, 13), 1), ((9, 13), 4), ((9, 13), 10), ((9, 13), 24), ((1, 7), 3)]
)
def test_products_are_the_convolution(size, rate):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, *size, 24)), jnp.float32)
  kernel = jnp.asarray(rng.standard_normal((3, 3, 24, 10)) / 15, jnp.float32)
  weight = jnp.asarray(rng.standard_normal((2, *size, 10)), jnp.float32)

  def run(function):
    total = lambda x, kernel: (function(x, kernel, rate=rate) * weight).sum()  # noqa: E731
    return jax.jit(lambda x, k: (function(x, k, rate=rate), *jax.grad(total, (0, 1))(x, k)))(x, kernel)

  for ours, theirs in zip(run(by_taps), run(atrous_conv_reference), strict=True):
    assert np.abs(ours - theirs).max() <= 4e-6 * np.abs(theirs).max()


def test_the_choice_depends_on_shapes_alone_and_changes_nothing():
  assert pays_off((64, 64), (3, 3, 2048, 512), 36) and pays_off((64, 64), (3, 3, 512, 21), 24)
  assert not pays_off((64, 64), (3, 3, 256, 256), 2)
  x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 8, 8, 4)), jnp.float32)
  kernel = jnp.asarray(np.random.default_rng(2).standard_normal((3, 3, 4, 4)), jnp.float32)
  for rate in (1, 6):
    assert pays_off((8, 8), kernel.shape, rate) == (rate == 6)
    ours, theirs = atrous_conv(x, kernel, rate=rate), atrous_conv_reference(x, kernel, rate=rate)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
