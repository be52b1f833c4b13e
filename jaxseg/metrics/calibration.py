"""Calibration: whether a class that is predicted with probability 0.8 is right in 80 of 100 pixels.

Expected calibration error and the reliability curve: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On
Calibration of Modern Neural Networks", ICML 2017.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxseg.metrics.confusion import digit_sums, sum_of_digits
from jaxseg.types import AnyArray

CALIBRATION_BINS = 15
# Nats, above which a pixel's loss is cut: float32 softmax has no smaller probability than e^-103.
LARGEST_LOSS = 128.0


def calibration_counts(
  confidence: Float[AnyArray, "b *n"],
  right: Bool[AnyArray, "b *n"],
  counted: Bool[AnyArray, "b *n"],
  *,
  bins: int = CALIBRATION_BINS,
) -> Int[Array, "{bins} 8"]:
  """For each bin of equal width (i/n, (i+1)/n]: hits, pixels, and the sum of the confidences in digits.

  Args:
    confidence: probability of the predicted class.
    right: whether it is the label's.
    counted: which pixels count.
    bins: n.
  """
  place = jnp.clip(jnp.ceil(jnp.asarray(confidence) * bins).astype(jnp.int32) - 1, 0, bins - 1)
  sums = digit_sums(place, confidence, counted, bins)
  counted = jnp.asarray(counted) & jnp.asarray(right)
  hits = digit_sums(place, jnp.zeros_like(confidence), counted, bins)[:, :1]
  return jnp.concatenate([hits, sums], axis=-1)


def loss_counts(
  losses: Float[AnyArray, "b *n"],
  labels: Integer[AnyArray, "b *n"],
  counted: Bool[AnyArray, "b *n"],
  *,
  num_classes: int,
) -> Int[Array, "{num_classes} 7"]:
  """Pixels of each class, and the sum of their losses (nats) in digits, each cut at `LARGEST_LOSS`."""
  return digit_sums(labels, jnp.asarray(losses) / LARGEST_LOSS, counted, num_classes)


def reliability(
  counts: Integer[AnyArray, "n 8"],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
  """(mean confidence, accuracy, share of the pixels) of each bin; NaN, NaN and 0 for an empty one."""
  counts = np.asarray(counts, np.int64)
  pixels = counts[:, 1].astype(np.float64)
  some = pixels > 0
  confidence, accuracy = (
    np.divide(x, pixels, out=np.full(len(pixels), np.nan), where=some)
    for x in (sum_of_digits(counts[:, 1:]), counts[:, 0].astype(np.float64))
  )
  return confidence, accuracy, pixels / max(pixels.sum(), 1.0)


def expected_calibration_error(counts: Integer[AnyArray, "n 8"]) -> float:
  """Mean over the pixels of |accuracy − mean confidence| of their bin, in [0, 1]; NaN without a pixel."""
  confidence, accuracy, share = reliability(counts)
  some = share > 0
  return float(np.sum(share[some] * np.abs(accuracy - confidence)[some])) if some.any() else float("nan")


def mean_loss(counts: Integer[AnyArray, "k 7"]) -> float:
  """Cross entropy a counted pixel, in nats; NaN without a pixel."""
  counts = np.asarray(counts, np.int64)
  pixels = counts[:, 0].sum()
  return float(sum_of_digits(counts).sum() * LARGEST_LOSS / pixels) if pixels else float("nan")
