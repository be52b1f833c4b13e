"""Bilinear resize against torch.nn.functional.interpolate, by sizes and by factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxseg
from jaxseg.layers.resize import rescale as eager_rescale
from jaxseg.layers.resize import resize as eager_resize

# One compilation each, instead of one for every operation.
resize = jax.jit(eager_resize, static_argnums=1, static_argnames="align_corners")
rescale = jax.jit(eager_rescale, static_argnums=1)

SIZES = [
  ((5, 7), (33, 29)),  # odd sizes, as a stride-8 map of an odd image
  ((8, 9), (24, 18)),  # whole factors: the fast form
  ((33, 29), (5, 7)),  # shrinking must not antialias
  ((1, 1), (6, 7)),
  ((6, 7), (1, 1)),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("before, after", SIZES)
def test_equals_torch(before, after, align_corners):
  x = np.random.default_rng(0).standard_normal((2, *before, 3)).astype(np.float32)
  ours = resize(x, after, align_corners=align_corners)
  # In double: PyTorch's float32 coordinates alone are off by 1e-5 of a pixel at the far edge.
  theirs = torch.nn.functional.interpolate(
    torch.from_numpy(x.transpose(0, 3, 1, 2)).double(), after, mode="bilinear", align_corners=align_corners
  )
  np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=2e-6)


def test_by_hand():
  line = jnp.array([0.0, 1, 2, 3])[None, None, :, None]
  np.testing.assert_allclose(resize(line, (1, 2))[0, 0, :, 0], [0.5, 2.5])  # antialiasing gives .71, 2.29
  np.testing.assert_allclose(resize(line, (1, 8))[0, 0, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
  np.testing.assert_allclose(
    resize(line, (1, 7), align_corners=True)[0, 0, :, 0], np.arange(7) / 2, atol=1e-6
  )


def test_resize_logits_is_float32():
  logits = jnp.ones((1, 4, 4, 3), jnp.bfloat16)
  out = jaxseg.resize_logits(logits, (7, 9))
  assert out.shape == (1, 7, 9, 3) and out.dtype == jnp.float32


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.25])
def test_rescale_equals_torch(factor):
  x = np.random.default_rng(0).standard_normal((2, 33, 35, 3)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(
    torch.from_numpy(x.transpose(0, 3, 1, 2)).double(), scale_factor=factor, mode="bilinear"
  )
  np.testing.assert_allclose(rescale(x, factor), theirs.numpy().transpose(0, 2, 3, 1), atol=2e-6)


def test_rescale_is_not_a_resize_where_the_size_is_rounded():
  """33 · 0.5 is rounded to 16, and yet the pixels are two apart."""
  x = np.random.default_rng(0).standard_normal((1, 33, 33, 1)).astype(np.float32)
  assert np.abs(rescale(x, 0.5) - resize(x, (16, 16))).max() > 0.1
