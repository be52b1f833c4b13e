"""Strips of upsampled logits against the full-size map: values, gradients, label maps, sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import resize, upsampled
from jaxseg.ops.upsampled_cross_entropy import (
  upsampled_argmax,
  upsampled_cross_entropy,
  upsampled_cross_entropy_reference,
)

# (logits' rows and columns, labels'), rows of a strip
CASES = [
  ((5, 6), (20, 24), 6),  # a whole factor; the last strip reaches beyond the map
  ((5, 7), (33, 29), 4),
  ((12, 12), (7, 9), 3),  # neighbouring rows of the result skip rows of the logits
]


def example(small, large, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(3 * rng.standard_normal((2, *small, 5)), dtype)
  labels = rng.integers(0, 5, (2, *large)).astype(np.int32)
  labels[rng.random(labels.shape) < 0.2] = 255
  return logits, jnp.asarray(labels), jnp.asarray(rng.standard_normal(labels.shape), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large", "rows"), CASES)
def test_cross_entropy_equals_the_definition(small, large, rows, align_corners, dtype):
  logits, labels, weights = example(small, large, dtype)

  def run(function, x, **settings):
    loss, pull = jax.vjp(lambda x: function(x, labels, align_corners=align_corners, **settings), x)
    return loss, *pull(weights)

  ours = jax.jit(lambda x: run(upsampled_cross_entropy, x, rows=rows))(logits)
  theirs = jax.jit(lambda x: run(upsampled_cross_entropy_reference, x))(logits.astype(jnp.float32))
  assert ours[0].dtype == jnp.float32 and ours[1].dtype == dtype
  np.testing.assert_allclose(ours[0], theirs[0], atol=5e-6)
  # A bfloat16 gradient is the float32 one, rounded once.
  tolerance = 2e-6 if dtype == jnp.float32 else 2**-8
  np.testing.assert_allclose(
    np.float32(ours[1]), theirs[1], rtol=tolerance, atol=tolerance * float(np.abs(theirs[1]).max()) / 4
  )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large", "rows"), CASES)
def test_argmax_equals_that_of_the_map(small, large, rows, align_corners):
  logits, _, _ = example(small, large)
  full = np.asarray(resize.resize_reference(logits, large, align_corners=align_corners))
  ours = np.asarray(upsampled_argmax(logits, large, align_corners=align_corners, rows=rows))
  assert ours.dtype == np.int32
  # Equal, or another class whose logit is as large but for rounding.
  chosen = np.take_along_axis(full, ours[..., None], -1)[..., 0]
  np.testing.assert_allclose(chosen, full.max(-1), atol=2e-6)
  assert (ours == full.argmax(-1)).mean() > 0.99


def sums_of(logits, labels):
  """A function without a derivative of its own, whose sums pixels beyond the map must not enter."""
  valid = (labels != 255)[..., None]
  p = jnp.where(valid, jax.nn.softmax(logits), 0.0)
  return (jnp.sum(p**3, -1),), (jnp.sum(p**2, (1, 2)), jnp.sum(labels != 255, (1, 2), dtype=jnp.int32))


@pytest.mark.parametrize(("small", "large", "rows"), CASES)
def test_maps_and_sums_with_a_derivative_by_jax(small, large, rows):
  logits, labels, weights = example(small, large)

  def run(x, rows):
    def value(x):
      (cubes,), (squares, count) = upsampled.map_rows(sums_of, x, (labels,), fills=(255,), rows=rows)
      return jnp.sum(cubes * weights) + jnp.sum(jnp.sqrt(1 + squares) * count[:, None]), (
        cubes,
        squares,
        count,
      )

    return jax.value_and_grad(value, has_aux=True)(x)

  ours, theirs = (jax.jit(run, static_argnums=1)(logits, n) for n in (rows, large[0]))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * float(np.abs(b).max()))


def test_no_array_of_the_full_size():
  logits, labels = jnp.zeros((1, 64, 64, 32), jnp.bfloat16), jnp.zeros((1, 256, 256), jnp.int32)
  step = jax.jit(jax.grad(lambda x: upsampled_cross_entropy(x, labels, rows=16).sum()))
  full = 4 * 256 * 256 * 32
  assert step.lower(logits).compile().memory_analysis().temp_size_in_bytes < full


def test_rows_of_a_strip():
  rows = lambda images, size, classes=150: upsampled.rows_of_strip(images, size, size[0] // 4, classes)  # noqa: E731
  assert rows(1, (64, 64)) == 64, "a small map is one strip"
  assert rows(16, (512, 512)) % 4 == 0 and 512 % rows(16, (512, 512)) == 0
  assert rows(1024, (2048, 2048)) >= 1
  assert 1 <= rows(4, (1021, 1021)) < 1021, "a prime height has uneven strips"
