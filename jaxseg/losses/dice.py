"""Soft dice loss (https://arxiv.org/abs/1606.04797): one minus the overlap of each class, 2·P·T / (P + T)."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxseg.errors import UserError
from jaxseg.losses.pixels import map_pixels, nan_if_unknown, prepare, targets
from jaxseg.types import IGNORE_LABEL, AnyArray


def dice(
  logits: Float[AnyArray, "b *_ k"],
  labels: Integer[AnyArray, "b *n"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  smooth: float = 1.0,
  exponent: float = 2.0,
  per_class: bool = True,
  multi_label: bool = False,
  align_corners: bool = False,
) -> Float[Array, ""]:
  """Mean over images and classes of 1 − (2·Σ p·t + smooth) / (Σ p^e + Σ t^e + smooth), in [0, 1].

  p is the softmax and t the one-hot label. Equal to mmseg 0.x's `DiceLoss` where every pixel is
  labelled; that counts the ignored ones in the denominator (as the last class, too), here they are
  in no sum. `per_class=False` takes the sums over all classes together, as mmseg 1.x does (`exponent=1`
  and `smooth=1e-3` is its `naive_dice`). An image without a labelled pixel counts as 0.

  Args:
    logits: unnormalised scores, images first; at another resolution than labels b H W they are brought to
      it a strip of rows at a time.
    labels: class ids in [0, k), or `ignore_label`; any other id makes the loss NaN.
    class_weights: one factor a class, for its dice; needs `per_class`.
    smooth: pixels added to both sums, above 0.
    exponent: e, at least 1.
    per_class: one quotient a class, instead of one an image.
    multi_label: a pixel may have several classes or none: labels hold a bit for each (`jaxseg.classes`), and
      p is the sigmoid.
    align_corners: corner rule of the resize to the labels' resolution.

  Raises:
    UserError: a value out of its range, wrong number of class weights, or weights without `per_class`.
  """
  if smooth <= 0:
    raise UserError(f"smooth is {smooth}, expected above 0: a class in neither side would divide 0 by 0")
  if exponent < 1:
    raise UserError(f"exponent is {exponent}, expected at least 1 (2 in V-Net)")
  pixels = prepare(
    logits, labels, ignore_label=ignore_label, class_weights=class_weights, align_corners=align_corners
  )
  if pixels.weights is not None and not per_class:
    raise UserError("class weights need per_class=True: over all classes together there is one quotient")
  sums_of_strip = _sums(float(exponent), multi_label, ignore_label)
  _, sums = map_pixels(sums_of_strip, pixels, ignore_label=ignore_label, align_corners=align_corners)
  overlap, powers, truth = sums if per_class else (x.sum(1) for x in sums)
  loss = 1.0 - (2.0 * overlap + smooth) / (powers + truth + smooth)
  if pixels.weights is not None:
    loss = loss * pixels.weights
  return nan_if_unknown(jnp.mean(loss) if loss.size else jnp.zeros(()), pixels, multi_label=multi_label)


@functools.cache
def _sums(exponent: float, multi_label: bool, ignore_label: int) -> Callable:
  """Σ p·t, Σ p^e and Σ t of each image and class, as `map_pixels` takes it."""
  activation = jax.nn.sigmoid if multi_label else jax.nn.softmax

  def sums(logits, labels):
    valid, axes = (labels != ignore_label)[..., None], tuple(range(1, labels.ndim))
    # Zeroed before the activation as well: whatever stands at an ignored pixel, its gradient is 0.
    probability = jnp.where(valid, activation(jnp.where(valid, logits, 0.0)), 0.0)
    target = (targets(labels, logits.shape[-1], multi_label) & valid).astype(jnp.float32)
    return (), tuple(jnp.sum(x, axes) for x in (probability * target, probability**exponent, target))

  return sums
