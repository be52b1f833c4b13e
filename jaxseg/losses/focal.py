"""Focal loss (https://arxiv.org/abs/1708.02002): cross entropy, times (1 − probability of the truth)^γ."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxseg.errors import UserError
from jaxseg.losses.cross_entropy import AVERAGES
from jaxseg.losses.pixels import count, divide, nan_if_unknown, prepare, weights_array
from jaxseg.types import IGNORE_LABEL, AnyArray

_ACTIVATIONS = ("sigmoid", "softmax")
# A logit that takes no part in a sum of exponentials, with a finite derivative.
_LOW = -1e30


def focal(
  logits: Float[AnyArray, "*b k"],
  labels: Integer[AnyArray, "*b"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  normalize_by: Literal["valid", "all", "weights"] = "valid",
  gamma: float = 2.0,
  alpha: float = 0.5,
  activation: Literal["sigmoid", "softmax"] = "sigmoid",
) -> Float[Array, ""]:
  """Focal loss in float32; 0 with zero gradient when no pixel is labelled.

  - "sigmoid", the paper's and mmseg's: every class is a yes-or-no question at every pixel, a yes
    weighs `alpha` and a no 1 − alpha; the mean is over pixels and classes. mmseg's defaults
    (the paper's alpha is 0.25).
  - "softmax": (1 − p)^γ · −ln p of the true class; `alpha` has no part in it.

  Args:
    logits: unnormalised scores, any leading axes.
    labels: class ids in [0, k), or `ignore_label`; any other id makes the loss NaN.
    class_weights: one factor a class; None or an empty sequence for none.
    normalize_by: over labelled pixels, over all pixels (mmseg's), or over the class weights
      of what is summed.
    gamma: how fast an easy pixel loses its weight, at least 0; 0 is the plain cross entropy.
    alpha: weight of the true class's question, in [0, 1].
    activation: see above.

  Raises:
    UserError: a value out of its range or choices, wrong number of class weights.
  """
  if normalize_by not in AVERAGES:
    raise UserError(f"normalize_by is {normalize_by!r}, expected 'valid', 'all' or 'weights'")
  if activation not in _ACTIVATIONS:
    raise UserError(f"activation is {activation!r}, expected 'sigmoid' or 'softmax'")
  if gamma < 0:
    raise UserError(f"gamma is {gamma}, expected at least 0")
  if not 0.0 <= alpha <= 1.0:
    raise UserError(f"alpha is {alpha}, expected a share in [0, 1]")
  num_classes = logits.shape[-1]
  weights = weights_array(class_weights, num_classes)
  weights = jnp.ones(num_classes) if weights is None else weights
  pixels = prepare(logits, labels, ignore_label=ignore_label)
  x, target = jnp.where(pixels.valid[..., None], pixels.logits, 0.0), pixels.target
  if activation == "sigmoid":
    # Through logarithms, so that no power of 0 is differentiated.
    z = jnp.where(target, x, -x)  # its sigmoid is the probability of the right answer
    terms = jnp.where(target, alpha, 1.0 - alpha) * jnp.exp(-gamma * jax.nn.softplus(z)) * jax.nn.softplus(-z)
    loss, weight, units = terms * weights, jnp.broadcast_to(weights, terms.shape), num_classes
  else:
    log_z = jax.nn.logsumexp(x, axis=-1)
    log_rest = jax.nn.logsumexp(jnp.where(target, _LOW, x), axis=-1) - log_z
    nll = log_z - jnp.sum(jnp.where(target, x, 0.0), axis=-1)
    weight = jnp.sum(jnp.where(target, weights, 0.0), axis=-1, keepdims=True)
    loss, units = weight * (jnp.exp(gamma * jnp.minimum(log_rest, 0.0)) * nll)[..., None], 1
  mask = pixels.valid[..., None]
  match normalize_by:
    case "all":
      divisor = jnp.float32(max(pixels.labels.size, 1) * units)
    case "valid":
      divisor = count(pixels.valid).astype(jnp.float32) * units
    case "weights":
      divisor = jnp.sum(jnp.where(mask, weight, 0.0))
  return nan_if_unknown(divide(jnp.sum(jnp.where(mask, loss, 0.0)), divisor), pixels)
