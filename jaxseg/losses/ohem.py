"""Cross entropy over the hard pixels (online hard example mining, https://arxiv.org/abs/1604.03540).

The rule is that of mmseg's `OHEMPixelSampler`, which its DeepLabV3 multi-grid recipes use: a pixel
is hard when the probability of its class is below `thresh`, or below that of the `min_kept`-th
hardest pixel an image, whichever is larger. So at least `min_kept` pixels an image of the batch
are kept (all but the very easiest one, where there are no more), whatever image they lie in.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxseg.errors import UserError
from jaxseg.losses.cross_entropy import AVERAGES, pixel_cross_entropy
from jaxseg.losses.pixels import count, divide, prepare
from jaxseg.types import IGNORE_LABEL, AnyArray

# The bit pattern of float32's infinity.
_INFINITY = 0x7F800000


def ohem_cross_entropy(
  logits: Float[AnyArray, "b *_ k"],
  labels: Integer[AnyArray, "b *n"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  normalize_by: Literal["valid", "all", "weights", "kept"] = "valid",
  label_smoothing: float = 0.0,
  thresh: float = 0.7,
  min_kept: int = 100_000,
  align_corners: bool = False,
) -> Float[Array, ""]:
  """Cross entropy of the hard pixels, in float32; 0 with zero gradient when no pixel is labelled.

  Args:
    logits: unnormalised scores; at another resolution than labels b H W they are brought to it a strip of
      rows at a time.
    labels: class ids in [0, k), or `ignore_label`; any other id makes the loss NaN.
    class_weights: one factor a class; None or an empty sequence for none.
    normalize_by: what the sum over the kept pixels is divided by: as in `cross_entropy` all labelled
      pixels, all pixels (mmseg's default), or the labelled pixels' weights; or "kept", their number
      (PIDNet and others).
    label_smoothing: as in `cross_entropy`.
    thresh: probability of the true class below which a pixel is hard, in [0, 1]; 0 keeps
      the `min_kept` pixels an image of the largest loss (mmseg's `thresh=None`).
    min_kept: pixels an image, at least 1.
    align_corners: corner rule of the resize to the labels' resolution.

  Raises:
    UserError: a value out of its range, an unknown `normalize_by`, wrong number of class weights.
  """
  if normalize_by not in (*AVERAGES, "kept"):
    raise UserError(f"normalize_by is {normalize_by!r}, expected 'valid', 'all', 'weights' or 'kept'")
  if not 0.0 <= thresh <= 1.0:
    raise UserError(f"thresh is {thresh}, expected a probability in [0, 1]")
  if min_kept < 1:
    raise UserError(f"min_kept is {min_kept}, expected at least 1 pixel an image")
  pixels = prepare(
    logits, labels, ignore_label=ignore_label, class_weights=class_weights, align_corners=align_corners
  )
  loss, weight, terms = pixel_cross_entropy(
    pixels, ignore_label=ignore_label, label_smoothing=label_smoothing, align_corners=align_corners
  )
  total = count(pixels.valid)
  wanted = min_kept * pixels.labels.shape[0]
  if thresh:
    fixed = jax.lax.stop_gradient(terms)
    probability = jnp.exp(jnp.minimum(fixed.true_logit - fixed.log_normaliser, 0.0))
    rank = jnp.minimum(wanted, total - 1)
    # Where enough are below the threshold already, the search would find a smaller one.
    limit = jax.lax.cond(
      count(pixels.valid & (probability < thresh)) > rank,
      lambda: jnp.float32(thresh),
      lambda: jnp.maximum(_at_rank(probability, pixels.valid, rank), thresh),
    )
    kept = probability < limit
  else:
    hardness = jax.lax.stop_gradient(loss)
    kept = hardness >= _at_rank(hardness, pixels.valid, jnp.maximum(total - wanted, 0))
  # A NaN (an id that is no class) compares with nothing, and has to stay seen.
  kept = pixels.valid & (kept | jnp.isnan(loss))
  divisor = {
    "all": lambda: jnp.float32(max(pixels.labels.size, 1)),
    "valid": lambda: total,
    "weights": lambda: jnp.sum(weight),
    "kept": lambda: count(kept),
  }[normalize_by]()
  return divide(jnp.sum(jnp.where(kept, loss, 0.0)), divisor)


def _at_rank(values: Float[Array, "*b"], valid: Bool[Array, "*b"], rank: Int[Array, ""]) -> Float[Array, ""]:
  """The valid value at the 0-based `rank` in rising order, by bisection; values are not negative.

  Thirty-one counts, each of which a sharded batch answers with one small sum, where sorting the
  pixels of all devices would move them.
  """
  # In this order bit patterns, read as integers, stand as the numbers do.
  patterns = jax.lax.bitcast_convert_type(values, jnp.int32)

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low) // 2
    enough = count(valid & (patterns <= middle)) > rank
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  found = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(_INFINITY)))[0]
  return jax.lax.bitcast_convert_type(found, jnp.float32)
