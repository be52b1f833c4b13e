"""Pooling: forms for TPU and for exported programs against the definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.export import forms
from jaxseg.layers import pool

WINDOWS = [
  dict(size=3, stride=2, padding=((1, 1), (1, 1))),
  dict(size=3, stride=2, padding=((1, 2), (1, 1))),
  dict(size=2, stride=1, padding=((0, 1), (0, 1))),
  dict(size=3, stride=2, padding=((0, -1), (1, 1))),  # a device's last rows
]


def draw(dtype, channels=3):
  return jnp.asarray(np.random.default_rng(0).standard_normal((2, 11, 14, channels)), dtype)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
  ("dtype", "value", "gradient"), [(jnp.float32, 1e-6, 1e-6), (jnp.bfloat16, 2**-8, 2**-7)]
)
def test_means_by_rows(window, dtype, value, gradient):
  """Values and gradients against float32's; of bfloat16 two roundings, and three (2^-9 each)."""
  x = draw(dtype)

  def run(form, x):
    y = form(x, **window)
    return (jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(dtype) * y).sum(), y

  (_, y), dx = jax.value_and_grad(lambda x: run(pool.mean_by_rows, x), has_aux=True)(x)
  wide = lambda x: run(pool.window_mean_reference, x)  # noqa: E731
  (_, wanted), slope = jax.value_and_grad(wide, has_aux=True)(x.astype(jnp.float32))
  assert y.dtype == dx.dtype == dtype
  for mine, their, tolerance in ((y, wanted, value), (dx, slope, gradient)):
    size = np.abs(their).max()
    np.testing.assert_allclose(np.float32(mine), their, rtol=0, atol=tolerance * size)


def test_tpus_take_means_by_rows_of_images_in_bfloat16():
  window = WINDOWS[0]

  def barriers(x):
    text = (
      jax.jit(lambda x: pool.window_mean(x, **window)).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    )
    return text.count("optimization_barrier")

  assert barriers(draw(jnp.bfloat16)) == 1
  assert barriers(draw(jnp.float32)) == barriers(draw(jnp.bfloat16, channels=32)) == 0


@pytest.mark.parametrize("window", WINDOWS[:3])
def test_the_exported_maximum(window):
  x = draw(jnp.float32)
  np.testing.assert_array_equal(forms.window_max(x, **window), pool.window_max_reference(x, **window))
