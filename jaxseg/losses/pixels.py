"""What every loss does first: float32, which pixels are labelled, which class each has."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxseg.errors import UserError
from jaxseg.types import AnyArray


class Pixels(NamedTuple):
  """A batch as losses see it; `*b` are its leading axes, `k` its classes."""

  logits: Float[Array, "*b k"]
  labels: Int[Array, "*b"]
  valid: Bool[Array, "*b"]  # the pixel has a label, which may be no class at all
  target: Bool[Array, "*b k"]  # one-hot; no class at an ignored pixel


def prepare(logits: Float[AnyArray, "*b k"], labels: Integer[AnyArray, "*b"], *, ignore_label: int) -> Pixels:
  """Logits in float32, labels in int32, and what is derived from them."""
  logits = jnp.asarray(logits).astype(jnp.float32)
  labels = jnp.asarray(labels).astype(jnp.int32)
  valid = labels != ignore_label
  # A comparison instead of a gather: its derivative is a subtraction, not a scatter, which is
  # slow on XLA:CPU and TPU alike.
  target = (labels[..., None] == jnp.arange(logits.shape[-1])) & valid[..., None]
  return Pixels(logits, labels, valid, target)


def nan_if_unknown(loss: Float[Array, ""], pixels: Pixels) -> Float[Array, ""]:
  """`loss`, or NaN where a label is neither a class nor ignored: it must not pass for an unlabelled pixel."""
  known = (pixels.labels >= 0) & (pixels.labels < pixels.logits.shape[-1])
  return jnp.where(jnp.all(known | ~pixels.valid), loss, jnp.nan)


def weights_array(
  class_weights: Float[AnyArray, "_"] | Sequence[float] | None, num_classes: int
) -> Float[Array, "{num_classes}"] | None:
  """One factor a class in float32; None for none.

  Raises:
    UserError: there are not `num_classes` of them.
  """
  if class_weights is None or len(class_weights) == 0:
    return None
  if len(class_weights) != num_classes:
    raise UserError(
      f"there are {len(class_weights)} class weights for {num_classes} classes; give one a class, or none"
    )
  return jnp.asarray(class_weights, jnp.float32)


def count(mask: Bool[Array, "*b"]) -> Int[Array, ""]:
  """How many are true: float32 would be exact up to 2^24 pixels only, so the count is an integer one."""
  return jnp.sum(mask, dtype=jnp.int32)


def divide(total: Float[Array, ""], by: Float[Array, ""] | Int[Array, ""]) -> Float[Array, ""]:
  """`total / by`, and `total` where there is nothing to divide by."""
  return total / jnp.where(by > 0, by, 1)
