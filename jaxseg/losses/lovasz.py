"""Lovász-softmax loss (https://arxiv.org/abs/1705.08790): a convex stand-in for 1 − IoU of every class."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from jaxseg.errors import UserError
from jaxseg.losses.pixels import at_labels, divide, nan_if_unknown, one_hot, prepare
from jaxseg.types import IGNORE_LABEL, AnyArray

_CLASSES = ("present", "all")


def lovasz(
  logits: Float[AnyArray, "b *_ k"],
  labels: Integer[AnyArray, "b *n"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  classes: Literal["present", "all"] = "present",
  per_image: bool = False,
  align_corners: bool = False,
) -> Float[Array, ""]:
  """Mean over classes of the Lovász extension of the Jaccard loss, in [0, 1]; 0 when no pixel is labelled.

  The pixels of a class are sorted by error, one class after the other, which bounds the memory. For that
  it needs the full-size map: unlike the other losses it brings lower logits up at once. Over
  the whole batch (the default, as in the paper) a sharded batch is gathered for it; `per_image` is not.

  Args:
    logits: unnormalised scores, images first; at another resolution than labels b H W they are brought to
      it.
    labels: class ids in [0, k), or `ignore_label`; any other id makes the loss NaN.
    class_weights: one factor a class; None or an empty sequence for none.
    classes: mean over the classes that the labels hold, or over all.
    per_image: the mean over images of each one's loss, instead of the batch as one image;
      one without a labelled pixel counts as 0.
    align_corners: corner rule of the resize to the labels' resolution.

  Raises:
    UserError: unknown `classes`, wrong number of class weights.
  """
  if classes not in _CLASSES:
    raise UserError(f"classes is {classes!r}, expected 'present' or 'all'")
  pixels = prepare(
    logits, labels, ignore_label=ignore_label, class_weights=class_weights, align_corners=align_corners
  )
  num_classes = pixels.logits.shape[-1]
  weights = jnp.ones(num_classes) if pixels.weights is None else pixels.weights
  full_size = at_labels(pixels.logits, pixels.labels, align_corners)
  probability = jax.nn.softmax(jnp.where(pixels.valid[..., None], full_size, 0.0), axis=-1)
  images = pixels.labels.shape[0] if per_image else 1
  if not pixels.labels.size:
    return jnp.zeros(())
  truth = (one_hot(pixels.labels, num_classes) & pixels.valid[..., None]).reshape(images, -1, num_classes)
  valid = pixels.valid.reshape(images, -1)
  probability = probability.reshape(truth.shape)

  def of_class(index):
    fg, p = truth[..., index], probability[..., index]
    return jax.vmap(_jaccard)(fg, jnp.where(valid, jnp.abs(fg - p), 0.0), valid)

  loss = jax.lax.map(of_class, jnp.arange(num_classes)).T  # images, classes
  counted = jnp.any(truth, axis=1) if classes == "present" else jnp.any(valid, axis=1, keepdims=True)
  counted = jnp.broadcast_to(counted, loss.shape)
  each = jax.vmap(divide)(jnp.sum(jnp.where(counted, loss * weights, 0.0), axis=1), jnp.sum(counted, axis=1))
  return nan_if_unknown(jnp.mean(each), pixels)


def _jaccard(
  truth: Bool[Array, " n"], errors: Float[Array, " n"], valid: Bool[Array, " n"]
) -> Float[Array, ""]:
  """Σ of the errors, falling, each times what its pixel adds to the Jaccard loss of those before it."""
  # Ignored pixels go last, behind an error of 0: they change no count of a labelled one.
  key = jnp.where(valid, -jax.lax.stop_gradient(errors), 1.0)
  _, errors, truth = jax.lax.sort((key, errors, truth), num_keys=1)
  total = jnp.sum(truth, dtype=jnp.int32)
  left = total - jnp.cumsum(truth, dtype=jnp.int32)  # of the truth, not yet found wrong
  union = total + jnp.cumsum(~truth, dtype=jnp.int32)
  # The step from one 1 − left / union to the next, written without their difference, which has no
  # digit left in float32 for a million pixels.
  union_float, left_float = union.astype(jnp.float32), left.astype(jnp.float32)
  step = jnp.where(
    truth,
    1.0 / jnp.maximum(union_float, 1.0),
    left_float / jnp.maximum(union_float, 1.0) / jnp.maximum(union_float - 1.0, 1.0),
  )
  # Of a class that is nowhere, the first wrong pixel takes the IoU to 0.
  step = jnp.where(total > 0, step, jnp.arange(step.shape[0]) == 0)
  return jnp.sum(errors * step)  # not `dot`, which TPUs round
