"""From logits to labels: one class a pixel by softmax, or all classes that reach a threshold by sigmoid.

A threshold of None is the former. Labels of several classes hold a bit for each (`jaxseg.classes`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxseg.classes import class_bits
from jaxseg.types import AnyArray


def threshold_of(model: Any, threshold: float) -> float | None:
  """`threshold` where the model is one of several classes a pixel, else None."""
  return float(threshold) if getattr(model, "multi_label", False) else None


def labels_of_logits(logits: Float[AnyArray, "*b k"], threshold: float | None = None) -> Int[Array, "*b"]:
  """The largest logit's class; with a threshold the classes whose sigmoid is at least that."""
  if threshold is None:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  reached = logits >= math.log(threshold / (1.0 - threshold))
  return jnp.sum(jnp.where(reached, class_bits(logits.shape[-1]), 0), axis=-1, dtype=jnp.int32)


@functools.cache
def labels_of_strip(threshold: float | None) -> Callable[..., Any]:
  """`labels_of_logits` as a function for `ops.upsampled`, one object for each threshold."""
  return lambda logits, _: ((labels_of_logits(logits, threshold),), ())


def probabilities(logits: Float[AnyArray, "*b k"], threshold: float | None = None) -> Float[Array, "*b k"]:
  """Softmax over the classes, or each class's own sigmoid."""
  return jax.nn.softmax(logits, axis=-1) if threshold is None else jax.nn.sigmoid(logits)


def log_probabilities(
  logits: Float[AnyArray, "*b k"], threshold: float | None = None
) -> Float[Array, "*b k"]:
  """Logarithm of `probabilities`."""
  return jax.nn.log_softmax(logits, axis=-1) if threshold is None else jax.nn.log_sigmoid(logits)


def logits_of(probability: Float[AnyArray, "*b k"], threshold: float | None = None) -> Float[Array, "*b k"]:
  """Logits with these `probabilities`."""
  tiny = jnp.finfo(jnp.float32).tiny
  log = jnp.log(jnp.maximum(probability, tiny))
  return log if threshold is None else log - jnp.log(jnp.maximum(1.0 - probability, tiny))
