"""Softmax cross entropy over labelled pixels, with the three averages that published recipes use.

- "valid": over labelled pixels (PyTorch without class weights, mmseg's `avg_non_ignore=True`);
- "all": over every pixel, unlabelled ones counting 0 (mmseg's default, so the official
  SegFormer and SegNeXt losses);
- "weights": over the class weights of the labelled pixels (`torch.nn.CrossEntropyLoss` with
  `weight`, the official CGNet).
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxseg.errors import UserError
from jaxseg.losses.pixels import Pixels, count, divide, known, map_pixels, prepare, weight_of_label
from jaxseg.ops.upsampled_cross_entropy import (
  Terms,
  make_softmax_terms,
  softmax_kernels_for,
  softmax_terms,
)
from jaxseg.types import IGNORE_LABEL, AnyArray

AVERAGES = ("valid", "all", "weights")


def cross_entropy(
  logits: Float[AnyArray, "*_ k"],
  labels: Integer[AnyArray, "*b"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  normalize_by: Literal["valid", "all", "weights"] = "valid",
  label_smoothing: float = 0.0,
  align_corners: bool = False,
) -> Float[Array, ""]:
  """Cross entropy in nats, computed in float32; 0 with zero gradient when no pixel is labelled.

  Args:
    logits: unnormalised scores, any leading axes; or b h w k at another resolution than labels b H W, to
      which they are brought a strip of rows at a time.
    labels: class ids in [0, k), or `ignore_label`. Any other id makes the loss NaN: it
      must not pass for an unlabelled pixel.
    class_weights: one factor a class; None or an empty sequence for none.
    normalize_by: what the sum is divided by, see the module.
    label_smoothing: share of the target spread evenly over the classes, in [0, 1);
      with class weights by PyTorch's rule.
    align_corners: corner rule of the resize to the labels' resolution.

  Raises:
    UserError: unknown `normalize_by`, wrong number of class weights, smoothing out of range, logits that do
      not belong to the labels.
  """
  if normalize_by not in AVERAGES:
    raise UserError(f"normalize_by is {normalize_by!r}, expected 'valid', 'all' or 'weights'")
  pixels = prepare(
    logits, labels, ignore_label=ignore_label, class_weights=class_weights, align_corners=align_corners
  )
  loss, weight, _ = pixel_cross_entropy(
    pixels, ignore_label=ignore_label, label_smoothing=label_smoothing, align_corners=align_corners
  )
  if normalize_by == "all":
    return jnp.sum(loss) / max(pixels.labels.size, 1)
  return divide(jnp.sum(loss), count(pixels.valid) if normalize_by == "valid" else jnp.sum(weight))


def pixel_cross_entropy(
  pixels: Pixels, *, ignore_label: int, label_smoothing: float, align_corners: bool
) -> tuple[Float[Array, "*b"], Float[Array, "*b"], Terms]:
  """(weighted loss, class weight, its terms) of every pixel.

  Loss and weight are 0 where the pixel is ignored, the loss is NaN for an unknown id.

  Raises:
    UserError: smoothing out of range.
  """
  if not 0.0 <= label_smoothing < 1.0:
    raise UserError(f"label_smoothing is {label_smoothing}, expected a share in [0, 1)")
  num_classes, weights, kernels = pixels.logits.shape[-1], pixels.weights, {}
  if not label_smoothing:
    function, derivative = softmax_terms()
    kernels = softmax_kernels_for(pixels.logits.shape, pixels.labels.shape, align_corners=align_corners)
  elif isinstance(weights, jax.core.Tracer):
    function, derivative = make_softmax_terms(weights / num_classes)
  else:
    # Hashable, so that calls share what was compiled.
    factors = (1.0,) * num_classes if weights is None else weights.tolist()
    function, derivative = softmax_terms(tuple(factor / num_classes for factor in factors))
  terms, _ = map_pixels(
    function,
    pixels,
    ignore_label=ignore_label,
    align_corners=align_corners,
    derivative=derivative,
    kernels=kernels,
  )
  weight = weight_of_label(pixels)
  loss = terms.log_normaliser - terms.true_logit
  if weights is not None:
    loss = weight * loss
  if label_smoothing:
    loss = (1.0 - label_smoothing) * loss - label_smoothing * terms.share
  return jnp.where(pixels.valid, jnp.where(known(pixels), loss, jnp.nan), 0.0), weight, terms
