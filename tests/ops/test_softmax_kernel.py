"""The TPU kernel of the upsampled cross entropy, interpreted, against the full-size map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import softmax_kernel
from jaxseg.ops.upsampled import choose_form
from jaxseg.ops.upsampled_cross_entropy import softmax_kernels_for, upsampled_cross_entropy_reference


def example(dtype, factors, classes=11, rows=4, columns=128):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(3 * rng.standard_normal((2, rows, columns, classes)), dtype)
  labels = rng.integers(0, classes, (2, rows * factors[0], columns * factors[1])).astype(np.int32)
  labels[rng.random(labels.shape) < 0.2] = 255
  return logits, jnp.asarray(labels), jnp.asarray(rng.standard_normal(labels.shape), jnp.float32)


# Blocks of one, two and four rows with rows of other blocks around them, and lanes that are not filled: of
# 64 columns, and of columns that end within the lanes of both maps.
@pytest.mark.parametrize(
  ("dtype", "factors", "columns"),
  [
    (jnp.float32, (4, 2), 128),
    (jnp.bfloat16, (2, 4), 128),
    (jnp.float32, (8, 8), 64),
    (jnp.float32, (4, 8), 85),
    (jnp.float32, (1, 4), 150),
  ],
)
def test_terms_equal_the_definition(dtype, factors, columns, monkeypatch):
  lanes = -(-columns // 128) * 128
  a_row = 4 * lanes * max(16, factors[0] * factors[1])
  monkeypatch.setattr(softmax_kernel, "_BLOCK_BYTES", 8 // factors[0] * a_row)
  logits, labels, weights = example(dtype, factors, rows=24 // factors[0], columns=columns)

  def ours(x):
    log_normaliser, true_logit = softmax_kernel.terms(x, labels, interpret=True)
    return log_normaliser - true_logit

  loss, pull = jax.vjp(ours, logits)
  wanted, pull_wanted = jax.vjp(
    lambda x: upsampled_cross_entropy_reference(x, labels), logits.astype(jnp.float32)
  )
  gradient, wanted_gradient = pull(weights)[0], pull_wanted(weights)[0]
  assert loss.dtype == jnp.float32 and gradient.dtype == dtype
  np.testing.assert_allclose(loss, wanted, atol=5e-6)
  tolerance = 2e-6 if dtype == jnp.float32 else 2**-8
  limit = tolerance * float(np.abs(wanted_gradient).max()) / 4
  np.testing.assert_allclose(np.float32(gradient), wanted_gradient, rtol=tolerance, atol=limit)


def test_which_shapes_it_takes():
  def takes(logits, size, **settings):
    return "tpu" in softmax_kernels_for(logits, (2, *size), align_corners=False, **settings)

  assert takes((2, 128, 128, 150), (512, 512)) and takes((2, 64, 256, 19), (256, 1024))
  assert takes((2, 120, 120, 150), (480, 480)) and takes((2, 64, 64, 150), (512, 512))
  assert takes((2, 85, 85, 19), (680, 680))
  assert not takes((2, 32, 32, 150), (128, 128)), "lanes that are mostly empty"
  assert not takes((2, 128, 128, 150), (513, 512)), "no whole factor"
  assert not takes((2, 64, 128, 150), (1024, 2048)), "too many phases to unroll"
  assert not takes((2, 64, 128, 150), (64 * 3, 128 * 3)), "sublanes that are not filled"
  assert softmax_kernels_for((2, 128, 128, 150), (2, 512, 512), align_corners=True) == {}
  assert choose_form("tpu", kernel=True) == "tpu kernel"
  assert {choose_form(p, kernel=k) for p, k in (("cpu", True), ("cuda", True), ("tpu", False))} == {"strips"}
