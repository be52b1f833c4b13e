"""Sums over pixels equal their plain definitions, and do not depend on how the pixels are grouped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.kernels.sums import image_mean, pixel_sum, pixel_sum_reference, scale_images, shift_images


@pytest.mark.parametrize("shape", [(5,), (7, 5), (4, 9, 6, 5)])
def test_pixel_sum_is_its_definition(shape):
  x = jax.random.normal(jax.random.key(0), shape) if len(shape) > 1 else jnp.arange(5.0)
  np.testing.assert_allclose(pixel_sum(x), pixel_sum_reference(x), rtol=1e-5, atol=1e-5)
  assert pixel_sum(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_however_a_batch_is_grouped_its_sum_has_the_same_bits():
  x = 1 + jax.random.normal(jax.random.key(0), (16, 64, 8, 64))
  exact = np.asarray(x, np.float64).sum((0, 1, 2)).astype(np.float32)
  for grouping in (x, x[::-1], x.reshape(4, -1, 8, 64), x[:, :, ::-1], x.reshape(16, 16, 32, 64)):
    np.testing.assert_array_equal(jax.jit(pixel_sum)(grouping), exact)
  # A plain sum in float32 is not one: its rounding depends on the order.
  assert np.any(np.asarray(jax.jit(pixel_sum_reference)(x)) != exact)


def test_of_a_large_array_all_but_the_rows_is_exact():
  x = 1 + jax.random.normal(jax.random.key(0), (16, 64, 16, 64))
  rows = np.asarray(x.sum(2), np.float64).sum((0, 1)).astype(np.float32)
  np.testing.assert_array_equal(jax.jit(pixel_sum)(x), rows)
  np.testing.assert_array_equal(jax.jit(pixel_sum)(x[::-1]), rows)
  np.testing.assert_allclose(rows, np.asarray(x, np.float64).sum((0, 1, 2)), rtol=1e-7)


def test_images_and_their_gradients_are_those_of_the_plain_forms():
  x = jax.random.normal(jax.random.key(0), (3, 6, 5, 4))
  v, dy = jax.random.normal(jax.random.key(1), (3, 4)), jax.random.normal(jax.random.key(2), x.shape)
  pairs = [
    (lambda x, v: image_mean(x) * v, lambda x, v: x.mean((1, 2)) * v),
    (lambda x, v: scale_images(x, v) * dy, lambda x, v: x * v[:, None, None] * dy),
    (lambda x, v: shift_images(x, v) * dy, lambda x, v: (x + v[:, None, None]) * dy),
  ]
  for ours, plain in pairs:
    np.testing.assert_allclose(ours(x, v), plain(x, v), atol=1e-6)
    ours, plain = (jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), argnums=(0, 1)) for f in (ours, plain))
    for a, b in zip(ours(x, v), plain(x, v), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
