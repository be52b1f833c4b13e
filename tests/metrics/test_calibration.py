"""Calibration and loss: equal to sums in float64, whatever the order of adding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.metrics import (
  calibration_counts,
  expected_calibration_error,
  loss_counts,
  mean_loss,
  reliability,
)
from jaxseg.metrics.confusion import DIGITS, _sum_by_row, digit_sums, sum_of_digits


@pytest.fixture(scope="module")
def pixels():
  rng = np.random.default_rng(0)
  confidence = (1.0 - 0.7 * rng.random((3, 40, 50)) ** 3).astype(np.float32)
  right = rng.random(confidence.shape) < confidence**2
  return confidence, right, rng.random(confidence.shape) < 0.8


def test_calibration_error_by_its_definition(pixels):
  confidence, right, counted = pixels
  counts = np.asarray(jax.jit(calibration_counts)(*pixels), np.int64)
  c, r = confidence[counted].astype(np.float64), right[counted]
  error, edges = 0.0, np.linspace(0, 1, 16)
  for i, (low, high) in enumerate(itertools.pairwise(edges)):
    inside = (c > low) & (c <= high)
    assert counts[i, :2].tolist() == [r[inside].sum(), inside.sum()]
    if inside.any():
      error += inside.mean() * abs(r[inside].mean() - c[inside].mean())
      assert reliability(counts)[0][i] == pytest.approx(c[inside].mean(), abs=1e-7)
  assert expected_calibration_error(counts) == pytest.approx(error, abs=1e-7)


def test_sums_do_not_depend_on_order_and_forms_agree(pixels):
  confidence, right, counted = pixels
  bins = right.astype(np.int32)
  sums = np.asarray(digit_sums(bins, confidence, counted, 2))
  np.testing.assert_array_equal(digit_sums(*(x[::-1, ::-1] for x in (bins, confidence, counted)), 2), sums)
  np.testing.assert_allclose(
    sum_of_digits(sums), [confidence[counted & (bins == i)].sum(dtype=np.float64) for i in (0, 1)], rtol=1e-7
  )
  fixed = np.minimum(np.round(confidence * 2.0**24), 2**24 - 1).astype(np.int32).reshape(3, -1)

  def digits(x):
    return jnp.stack([jnp.ones_like(x), *((x >> 4 * i) & 15 for i in range(DIGITS))], -1).astype("bfloat16")

  rows = np.where(counted, bins, -1).reshape(3, -1)
  product = jax.jit(lambda rows, x: _sum_by_row(rows, x, digits, (2, 1 + DIGITS)))(rows, fixed)
  np.testing.assert_array_equal(product.sum(0), sums)


def test_loss_is_the_mean_over_the_counted_pixels(pixels):
  confidence, right, counted = pixels
  losses = -np.log(1.01 - confidence) * 3
  counts = loss_counts(losses, right.astype(np.int32), counted, num_classes=3)
  assert mean_loss(counts) == pytest.approx(losses[counted].mean(dtype=np.float64), abs=1e-6)
  assert np.isnan(mean_loss(np.zeros((3, 7), np.int64)))
