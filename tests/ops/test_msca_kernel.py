"""The TPU kernel of MSCA's convolutions, interpreted, against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.ops import msca, msca_kernel, upsampled

SIZES = msca_kernel.Sizes(3, (3, 5))


def example(dtype, columns=8, channels=3):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  def weights(height, width):
    return draw(height, width, 1, channels).astype(dtype), draw(channels)

  strips = [(weights(1, n), weights(n, 1)) for n in SIZES.strips]
  return draw(2, 5, columns, channels).astype(dtype), weights(3, 3), strips


# 128 columns lie in the lanes.
@pytest.mark.parametrize(("dtype", "columns"), [(jnp.float32, 8), (jnp.bfloat16, 8), (jnp.bfloat16, 128)])
def test_value_and_gradients_equal_the_definition(dtype, columns):
  arguments = example(dtype, columns)
  wide = jax.tree.map(lambda a: a.astype(jnp.float32), arguments)
  dy = jnp.asarray(np.random.default_rng(1).standard_normal(arguments[0].shape), dtype)

  @functools.partial(jax.jit, static_argnums=0)
  def run(function, arguments, dy):
    y, pull = jax.vjp(function, *arguments)
    return y, *pull(dy)

  def kernel(x, square, strips):
    return msca_kernel.msca(x, msca.pack(square, strips), SIZES, True)

  ours, wanted = run(kernel, arguments, dy), run(msca.msca_reference, wide, dy.astype(jnp.float32))
  # The kernel sums in float32 and rounds once.
  tolerance = 2e-6 if dtype == jnp.float32 else 2**-8
  for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
    limit = tolerance * float(np.abs(theirs).max())
    np.testing.assert_allclose(np.float32(mine), theirs, rtol=tolerance, atol=limit)
  assert ours[0].dtype == ours[1].dtype == dtype


def test_it_can_be_switched_off(monkeypatch):
  monkeypatch.setenv("JAXSEG_TPU_KERNELS", "off")
  assert msca.choose_form("tpu", kernel=True) == "convolutions"
  assert upsampled.choose_form("tpu", kernel=True) == "strips"
  monkeypatch.setenv("JAXSEG_TPU_KERNELS", "no")
  with pytest.raises(UserError, match="JAXSEG_TPU_KERNELS is 'no'; expected 'on' or 'off'"):
    msca.choose_form("tpu", kernel=True)


def test_which_maps_it_takes():
  takes = functools.partial(msca_kernel.fits, sizes=msca_kernel.Sizes(5, (7, 11, 21)))
  for side, channels in ((128, 32), (128, 64), (64, 128), (32, 320), (16, 512)):
    assert takes((16, side, side, channels), jnp.bfloat16)
  assert not takes((16, 127, 127, 64), jnp.bfloat16), "sublanes that are not filled"
  assert not takes((16, 128, 128, 16), jnp.bfloat16), "lanes that are mostly empty"
  assert not takes((1, 512, 512, 64), jnp.bfloat16), "a map that is larger than the vector memory"
  assert msca.choose_form("tpu", kernel=True) == "kernel"
  assert {msca.choose_form(p, kernel=k) for p, k in (("cpu", True), ("cuda", True), ("tpu", False))} == {
    "convolutions"
  }
