"""A small picture, and the definition of the CRF written out with the N×N matrix."""

import numpy as np
import pytest

KERNELS = ((2.0, None, 1.5), ((9.0, 7.0), (30.0, 25.0, 40.0), 2.0))


@pytest.fixture(scope="session")
def case() -> tuple[np.ndarray, np.ndarray]:
  """(unary, image): 9×11 pixels, 3 classes, two noisy regions of colour."""
  rng = np.random.default_rng(0)
  image = np.full((9, 11, 3), (200, 60, 40)) + rng.integers(-30, 30, (9, 11, 3))
  image[:, 5:] = np.asarray((40, 90, 180)) + rng.integers(-30, 30, (9, 6, 3))
  logits = rng.normal(size=(9, 11, 3))
  unary = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
  return unary.astype(np.float32), image.astype(np.uint8)


def dense_kernel(image, sxy, srgb) -> np.ndarray:
  """K of one kernel, normalised on both sides, float64 N×N."""
  height, width, _ = image.shape
  y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
  sx, sy = np.broadcast_to(sxy, 2)
  square = ((x[:, None] - x) / sx) ** 2 + ((y[:, None] - y) / sy) ** 2
  if srgb is not None:
    colour = image.reshape(-1, 3).astype(np.float64) / srgb
    square += ((colour[:, None] - colour) ** 2).sum(-1)
  kernel = np.exp(-square / 2)
  root = 1 / np.sqrt(kernel.sum(1) + 1e-20)
  return root[:, None] * kernel * root


def dense_mean_field(unary, image, kernels, steps) -> np.ndarray:
  """The update as the design writes it, in float64."""

  def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)

  matrices = [(dense_kernel(image, sxy, srgb), compat) for sxy, srgb, compat in kernels]
  u = unary.reshape(-1, unary.shape[-1]).astype(np.float64)
  q = softmax(-u)
  for _ in range(steps):
    logits = -u
    for matrix, compat in matrices:
      logits = logits + (compat * (matrix @ q) if np.ndim(compat) == 0 else -(matrix @ q) @ compat)
    q = softmax(logits)
  return q.reshape(unary.shape)
