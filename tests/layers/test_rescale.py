"""Resizing by a factor against torch.nn.functional.interpolate(scale_factor=...)."""

import numpy as np
import pytest
import torch

from jaxseg.layers.resize import rescale, resize


@pytest.mark.parametrize("size", [(97, 129), (64, 50), (33, 35)])
@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0, 1.25])
def test_equals_torch(size, factor):
  x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(
    torch.from_numpy(x.transpose(0, 3, 1, 2)).double(), scale_factor=factor, mode="bilinear"
  )
  np.testing.assert_allclose(rescale(x, factor), theirs.numpy().transpose(0, 2, 3, 1), atol=2e-6)


def test_is_not_a_resize_where_the_size_is_rounded():
  """97 · 0.5 is rounded to 48, and yet the pixels are two apart."""
  x = np.random.default_rng(0).standard_normal((1, 97, 97, 1)).astype(np.float32)
  assert np.abs(rescale(x, 0.5) - resize(x, (48, 48))).max() > 0.1
