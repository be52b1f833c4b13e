"""Soft dice loss (https://arxiv.org/abs/1606.04797): one minus the overlap of each class, 2·P·T / (P + T)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxseg.errors import UserError
from jaxseg.losses.pixels import nan_if_unknown, prepare, weights_array
from jaxseg.types import IGNORE_LABEL, AnyArray


def dice(
  logits: Float[AnyArray, "b *n k"],
  labels: Integer[AnyArray, "b *n"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  smooth: float = 1.0,
  exponent: float = 2.0,
  per_class: bool = True,
) -> Float[Array, ""]:
  """Mean over images and classes of 1 − (2·Σ p·t + smooth) / (Σ p^e + Σ t^e + smooth), in [0, 1].

  p is the softmax and t the one-hot label. Equal to mmseg 0.x's `DiceLoss` where every pixel is
  labelled; that counts the ignored ones in the denominator (as the last class, too), here they are
  in no sum. `per_class=False` takes the sums over all classes together, as mmseg 1.x does (`exponent=1`
  and `smooth=1e-3` is its `naive_dice`). An image without a labelled pixel counts as 0.

  Args:
    logits: unnormalised scores, images first.
    labels: class ids in [0, k), or `ignore_label`; any other id makes the loss NaN.
    class_weights: one factor a class, for its dice; needs `per_class`.
    smooth: pixels added to both sums, above 0.
    exponent: e, at least 1.
    per_class: one quotient a class, instead of one an image.

  Raises:
    UserError: a value out of its range, wrong number of class weights, or weights without `per_class`.
  """
  if smooth <= 0:
    raise UserError(f"smooth is {smooth}, expected above 0: a class in neither side would divide 0 by 0")
  if exponent < 1:
    raise UserError(f"exponent is {exponent}, expected at least 1 (2 in V-Net)")
  num_classes = logits.shape[-1]
  weights = weights_array(class_weights, num_classes)
  if weights is not None and not per_class:
    raise UserError("class weights need per_class=True: over all classes together there is one quotient")
  pixels = prepare(logits, labels, ignore_label=ignore_label)
  flat = (pixels.labels.shape[0], -1, num_classes)
  valid = pixels.valid[..., None]
  # Zeroed before the softmax as well: whatever stands at an ignored pixel, its gradient is 0.
  probability = jax.nn.softmax(jnp.where(valid, pixels.logits, 0.0), axis=-1)
  probability = jnp.where(valid, probability, 0.0).reshape(flat)
  target = pixels.target.reshape(flat).astype(jnp.float32)
  axes = 1 if per_class else (1, 2)
  overlap = jnp.sum(probability * target, axes)
  both = jnp.sum(probability**exponent, axes) + jnp.sum(target, axes)
  loss = 1.0 - (2.0 * overlap + smooth) / (both + smooth)
  if weights is not None:
    loss = loss * weights
  return nan_if_unknown(jnp.mean(loss) if loss.size else jnp.zeros(()), pixels)
