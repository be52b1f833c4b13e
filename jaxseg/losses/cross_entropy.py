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
from jaxseg.losses.pixels import Pixels, count, divide, prepare, weights_array
from jaxseg.types import IGNORE_LABEL, AnyArray

AVERAGES = ("valid", "all", "weights")


def cross_entropy(
  logits: Float[AnyArray, "*b k"],
  labels: Integer[AnyArray, "*b"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  normalize_by: Literal["valid", "all", "weights"] = "valid",
  label_smoothing: float = 0.0,
) -> Float[Array, ""]:
  """Cross entropy in nats, computed in float32; 0 with zero gradient when no pixel is labelled.

  Args:
    logits: unnormalised scores, any leading axes.
    labels: class ids in [0, k), or `ignore_label`. Any other id makes the loss NaN: it
      must not pass for an unlabelled pixel.
    class_weights: one factor a class; None or an empty sequence for none.
    normalize_by: what the sum is divided by, see the module.
    label_smoothing: share of the target spread evenly over the classes, in [0, 1);
      with class weights by PyTorch's rule.

  Raises:
    UserError: unknown `normalize_by`, wrong number of class weights, smoothing out of range.
  """
  if normalize_by not in AVERAGES:
    raise UserError(f"normalize_by is {normalize_by!r}, expected 'valid', 'all' or 'weights'")
  pixels = prepare(logits, labels, ignore_label=ignore_label)
  loss, weight = pixel_cross_entropy(pixels, class_weights=class_weights, label_smoothing=label_smoothing)
  if normalize_by == "all":
    return jnp.sum(loss) / max(pixels.labels.size, 1)
  return divide(jnp.sum(loss), count(pixels.valid) if normalize_by == "valid" else jnp.sum(weight))


def pixel_cross_entropy(
  pixels: Pixels,
  *,
  class_weights: Float[AnyArray, "_"] | Sequence[float] | None,
  label_smoothing: float,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
  """(weighted loss, class weight) of every pixel, both 0 where it is ignored, NaN loss for an unknown id.

  Raises:
    UserError: wrong number of class weights, smoothing out of range.
  """
  logits, labels, valid, target = pixels
  num_classes = logits.shape[-1]
  if not 0.0 <= label_smoothing < 1.0:
    raise UserError(f"label_smoothing is {label_smoothing}, expected a share in [0, 1)")
  weights = weights_array(class_weights, num_classes)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  nll = log_z - jnp.sum(jnp.where(target, logits, 0.0), axis=-1)
  pixel_weight = jnp.ones_like(nll) if weights is None else jnp.sum(jnp.where(target, weights, 0.0), axis=-1)
  loss = pixel_weight * nll
  if label_smoothing:
    class_share = jnp.full((num_classes,), 1.0 / num_classes) if weights is None else weights / num_classes
    uniform = jnp.sum(class_share * (log_z[..., None] - logits), axis=-1)
    loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
  known = (labels >= 0) & (labels < num_classes)
  loss = jnp.where(valid, jnp.where(known, loss, jnp.nan), 0.0)
  return loss, jnp.where(valid, pixel_weight, 0.0)
