"""Focal loss (https://arxiv.org/abs/1708.02002): cross entropy, times (1 − probability of the truth)^γ."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxseg.errors import UserError
from jaxseg.losses.cross_entropy import AVERAGES
from jaxseg.losses.pixels import (
  count,
  divide,
  map_pixels,
  nan_if_unknown,
  one_hot,
  prepare,
  targets,
  weight_of_label,
)
from jaxseg.types import IGNORE_LABEL, AnyArray

_ACTIVATIONS = ("sigmoid", "softmax")
# A logit that takes no part in a sum of exponentials, with a finite derivative.
_LOW = -1e30


def focal(
  logits: Float[AnyArray, "*_ k"],
  labels: Integer[AnyArray, "*b"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  normalize_by: Literal["valid", "all", "weights"] = "valid",
  gamma: float = 2.0,
  alpha: float = 0.5,
  activation: Literal["sigmoid", "softmax"] = "sigmoid",
  multi_label: bool = False,
  align_corners: bool = False,
) -> Float[Array, ""]:
  """Focal loss in float32; 0 with zero gradient when no pixel is labelled.

  - "sigmoid", the paper's and mmseg's: every class is a yes-or-no question at every pixel, a yes
    weighs `alpha` and a no 1 − alpha; the mean is over pixels and classes. mmseg's defaults
    (the paper's alpha is 0.25).
  - "softmax": (1 − p)^γ · −ln p of the true class; `alpha` has no part in it.

  Args:
    logits: unnormalised scores, any leading axes; or b h w k at another resolution than labels b H W, to
      which they are brought a strip of rows at a time.
    labels: class ids in [0, k), or `ignore_label`; any other id makes the loss NaN.
    class_weights: one factor a class; None or an empty sequence for none.
    normalize_by: over labelled pixels, over all pixels (mmseg's), or over the class weights
      of what is summed.
    gamma: how fast an easy pixel loses its weight, at least 0; 0 is the plain cross entropy.
    alpha: weight of the true class's question, in [0, 1].
    activation: see above.
    multi_label: a pixel may have several classes or none: labels hold a bit for each (`jaxseg.classes`).
    align_corners: corner rule of the resize to the labels' resolution.

  Raises:
    UserError: a value out of its range or choices, wrong number of class weights.
  """
  if normalize_by not in AVERAGES:
    raise UserError(f"normalize_by is {normalize_by!r}, expected 'valid', 'all' or 'weights'")
  if activation not in _ACTIVATIONS:
    raise UserError(f"activation is {activation!r}, expected 'sigmoid' or 'softmax'")
  if multi_label and activation == "softmax":
    raise UserError("activation is 'softmax', by which a pixel has one class; multi_label needs 'sigmoid'")
  if gamma < 0:
    raise UserError(f"gamma is {gamma}, expected at least 0")
  if not 0.0 <= alpha <= 1.0:
    raise UserError(f"alpha is {alpha}, expected a share in [0, 1]")
  pixels = prepare(
    logits, labels, ignore_label=ignore_label, class_weights=class_weights, align_corners=align_corners
  )
  num_classes, weights = pixels.logits.shape[-1], pixels.weights
  if activation == "softmax":
    term = _softmax_term(float(gamma), ignore_label)
  elif isinstance(weights, jax.core.Tracer):
    term = _make_sigmoid_term(float(gamma), float(alpha), weights, multi_label, ignore_label)
  else:
    factors = (1.0,) * num_classes if weights is None else tuple(weights.tolist())
    term = _sigmoid_term(float(gamma), float(alpha), factors, multi_label, ignore_label)
  ((loss,), _) = map_pixels(term, pixels, ignore_label=ignore_label, align_corners=align_corners)
  valid, units = count(pixels.valid).astype(jnp.float32), 1
  if activation == "softmax":
    weight = weight_of_label(pixels)
    loss, total_weight = weight * loss, jnp.sum(weight)
  else:
    units = num_classes
    total_weight = valid * (num_classes if weights is None else weights.sum())
  divisor = {
    "all": jnp.float32(max(pixels.labels.size, 1) * units),
    "valid": valid * units,
    "weights": total_weight,
  }[normalize_by]
  total = jnp.sum(jnp.where(pixels.valid, loss, 0.0))
  return nan_if_unknown(divide(total, divisor), pixels, multi_label=multi_label)


@functools.cache
def _sigmoid_term(
  gamma: float, alpha: float, weights: tuple[float, ...], multi_label: bool, ignore_label: int
) -> Callable:
  return _make_sigmoid_term(gamma, alpha, np.asarray(weights, np.float32), multi_label, ignore_label)


def _make_sigmoid_term(
  gamma: float, alpha: float, weights: Any, multi_label: bool, ignore_label: int
) -> Callable:
  """Σ over the classes of one pixel's weighted questions, as `map_pixels` takes it."""

  def term(logits, labels):
    target = targets(labels, logits.shape[-1], multi_label)
    # Zeroed before: whatever stands at an ignored pixel, its gradient is 0.
    x = jnp.where((labels != ignore_label)[..., None], logits, 0.0)
    # Through logarithms, so that no power of 0 is differentiated.
    z = jnp.where(target, x, -x)  # its sigmoid is the probability of the right answer
    terms = jnp.where(target, alpha, 1.0 - alpha) * jnp.exp(-gamma * jax.nn.softplus(z)) * jax.nn.softplus(-z)
    return (jnp.sum(terms * weights, axis=-1),), ()

  return term


@functools.cache
def _softmax_term(gamma: float, ignore_label: int) -> Callable:
  """One pixel's loss before its class weight, as `map_pixels` takes it."""

  def term(logits, labels):
    valid = (labels != ignore_label)[..., None]
    x, target = jnp.where(valid, logits, 0.0), one_hot(labels, logits.shape[-1]) & valid
    log_z = jax.nn.logsumexp(x, axis=-1)
    log_rest = jax.nn.logsumexp(jnp.where(target, _LOW, x), axis=-1) - log_z
    nll = log_z - jnp.sum(jnp.where(target, x, 0.0), axis=-1)
    return (jnp.exp(gamma * jnp.minimum(log_rest, 0.0)) * nll,), ()

  return term
