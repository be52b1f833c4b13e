"""What every loss does first: which pixels are labelled, and logits at the labels' resolution."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxseg.classes import class_bits, members
from jaxseg.errors import UserError
from jaxseg.layers.resize import resize_logits
from jaxseg.layers.upsampled import map_upsampled
from jaxseg.types import AnyArray

# One factor a class.
ClassWeights = Float[AnyArray, "_"] | Sequence[float]


class Pixels(NamedTuple):
  """A batch as losses see it; `*b` are the axes of its labels.

  Attributes:
    logits: of any float type, at the labels' resolution or another one.
    labels: int32.
    valid: the pixel has a label, which may be no class at all.
    weights: one factor a class in float32, or None; a NumPy array unless it is traced.
  """

  logits: Float[Array, "*_ k"]
  labels: Int[Array, "*b"]
  valid: Bool[Array, "*b"]
  weights: Any


def prepare(
  logits: Float[AnyArray, "*_ k"],
  labels: Integer[AnyArray, "*b"],
  *,
  ignore_label: int,
  class_weights: ClassWeights | None = None,
  align_corners: bool = False,
) -> Pixels:
  """Checks logits and labels against each other.

  Raises:
    UserError: logits and labels that do not belong together, wrong number of class weights.
  """
  logits, labels = jnp.asarray(logits), jnp.asarray(labels).astype(jnp.int32)
  if logits.shape[:-1] != labels.shape and not (
    logits.ndim == 4 and labels.ndim == 3 and len(logits) == len(labels)
  ):
    raise UserError(
      f"logits have shape {logits.shape} and labels {labels.shape}; expected one label for each position, or"
      " logits b h w k with labels b H W of another resolution"
    )
  weights = weights_array(class_weights, logits.shape[-1])
  if isinstance(weights, jax.core.Tracer):
    # A strip's function cannot take them in its derivative: with these, the map is held.
    logits = at_labels(logits, labels, align_corners)
  return Pixels(logits, labels, labels != ignore_label, weights)


def at_labels(logits: Float[Array, "*_ k"], labels: Int[Array, "*b"], align_corners: bool) -> Array:
  """The logits in float32 at the labels' resolution: the full-size map."""
  if logits.shape[:-1] == labels.shape:
    return logits.astype(jnp.float32)
  return resize_logits(logits, labels.shape[1:], align_corners=align_corners)


def map_pixels(
  function: Callable[..., Any],
  pixels: Pixels,
  *,
  ignore_label: int,
  align_corners: bool,
  derivative: Callable[..., Any] | None = None,
  kernels: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
  """`function` of (float32 logits at the labels' resolution, labels), which never is held at once.

  Args:
    function: as `ops.upsampled.map_strips` takes it, of pixels with any number of axes. Where it is not the
      same object from call to call, each call is compiled anew.
    pixels: the batch.
    ignore_label: beyond the last row of a strip.
    align_corners: corner rule of the resize.
    derivative: as `ops.upsampled.map_strips` takes it.
    kernels: as `ops.upsampled.map_rows` takes it.
  """
  if pixels.logits.shape[:-1] == pixels.labels.shape:
    return function(pixels.logits.astype(jnp.float32), pixels.labels)
  return map_upsampled(
    function,
    pixels.logits,
    (pixels.labels,),
    align_corners=align_corners,
    fills=(ignore_label,),
    derivative=derivative,
    kernels=kernels,
  )


def one_hot(labels: Int[Array, "*b"], num_classes: int) -> Bool[Array, "*b {num_classes}"]:
  """Which class each label is; none where it is none."""
  # A comparison instead of a gather: its derivative is a subtraction, not a scatter, which is
  # slow on XLA:CPU and TPU alike.
  return labels[..., None] == jnp.arange(num_classes)


def targets(labels: Int[Array, "*b"], num_classes: int, multi_label: bool) -> Bool[Array, "*b {num_classes}"]:
  """Which classes are right: the label's one, or those of a label of several (`jaxseg.classes`)."""
  return members(labels, num_classes) if multi_label else one_hot(labels, num_classes)


def weight_of_label(pixels: Pixels) -> Float[Array, "*b"]:
  """The class weight of every pixel's label, 1 without weights; 0 where it is ignored or no class."""
  target = one_hot(pixels.labels, pixels.logits.shape[-1])
  weights = jnp.float32(1.0) if pixels.weights is None else pixels.weights
  return jnp.where(pixels.valid, jnp.sum(jnp.where(target, weights, 0.0), axis=-1), 0.0)


def known(pixels: Pixels, *, multi_label: bool = False) -> Bool[Array, "*b"]:
  """Whether the label is a class, or nothing but classes."""
  num_classes = pixels.logits.shape[-1]
  if multi_label:
    return (pixels.labels & ~int(class_bits(num_classes).sum())) == 0
  return (pixels.labels >= 0) & (pixels.labels < num_classes)


def nan_if_unknown(loss: Float[Array, ""], pixels: Pixels, *, multi_label: bool = False) -> Float[Array, ""]:
  """`loss`, or NaN where a label is neither a class nor ignored: it must not pass for an unlabelled pixel."""
  return jnp.where(jnp.all(known(pixels, multi_label=multi_label) | ~pixels.valid), loss, jnp.nan)


def weights_array(class_weights: ClassWeights | None, num_classes: int) -> Any:
  """One factor a class in float32, a NumPy array unless it is traced; None for none.

  Raises:
    UserError: there are not `num_classes` of them.
  """
  if class_weights is None or len(class_weights) == 0:
    return None
  if len(class_weights) != num_classes:
    raise UserError(
      f"there are {len(class_weights)} class weights for {num_classes} classes; give one a class, or none"
    )
  if isinstance(class_weights, jax.core.Tracer):
    return class_weights.astype(jnp.float32)
  return np.asarray(class_weights, np.float32)


def count(mask: Bool[Array, "*b"]) -> Int[Array, ""]:
  """How many are true: float32 would be exact up to 2^24 pixels only, so the count is an integer one."""
  return jnp.sum(mask, dtype=jnp.int32)


def divide(total: Float[Array, ""], by: Float[Array, ""] | Int[Array, ""]) -> Float[Array, ""]:
  """`total / by`, and `total` where there is nothing to divide by."""
  return total / jnp.where(by > 0, by, 1)
