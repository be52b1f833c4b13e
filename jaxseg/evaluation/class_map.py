"""Weights scored on data of other classes: which class of the data each class of the model stands for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxseg.errors import UserError
from jaxseg.evaluation.inference import PredictFn, forward
from jaxseg.types import AnyArray

# Added to the logit of a class that is never predicted: no float32 probability, and finite under a resize.
_NEVER = -1e9

# For each class of the model its class of the data, or -1.
ClassMap = tuple[int, ...]


def make_class_map(pairs: Sequence[tuple[int, int]], *, num_model: int, num_data: int) -> ClassMap:
  """From (class of the model, class of the data) pairs; classes of the model without a pair get -1.

  Raises:
    UserError: a class that there is not, or a class of the model twice.
  """
  table = [-1] * num_model
  for source, target in pairs:
    for which, number, count in (("model", source, num_model), ("data", target, num_data)):
      if not 0 <= number < count:
        raise UserError(
          f"config.eval.class_map has ({source}, {target}), but the {which} has the classes 0 to {count - 1}"
        )
    if table[source] not in (-1, target):
      raise UserError(f"config.eval.class_map gives class {source} of the model to two classes of the data")
    table[source] = target
  return tuple(table)


def never_predicting(model: nn.Module | PredictFn, class_map: ClassMap) -> PredictFn:
  """The model with the classes that stand for none made impossible; what is left keeps its own ids.

  Raises:
    UserError: when called, a model that gives label maps.
  """
  apply = forward(model)
  added = np.where(np.asarray(class_map) < 0, _NEVER, 0.0).astype(np.float32)

  def call(variables: Mapping[str, Any], image: AnyArray) -> Array:
    outputs = apply(variables, image)
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
    if logits.ndim != 4:
      raise UserError("config.eval.class_map needs a model that gives logits; this one gives label maps")
    return jnp.asarray(logits).astype(jnp.float32) + added

  return call


def mapped(pred: Integer[AnyArray, "*n"], class_map: ClassMap | None) -> Int[Array, "*n"]:
  """Predictions in the data's classes; as they are without a map."""
  if class_map is None:
    return jnp.asarray(pred)
  return jnp.asarray(np.asarray(class_map, np.int32))[jnp.asarray(pred)]


def mapped_terms(class_map: ClassMap) -> Callable[..., Any]:
  """`counts.terms_of_logits` where the labels are the data's classes and the logits the model's.

  The class is that of the largest logit; a class of the data has the probability of all that stand for it.
  """
  table = np.asarray(class_map, np.int32)

  def terms(logits: Float[AnyArray, "*b k"], labels: Integer[AnyArray, "*b"]) -> Any:
    log_probs = jax.nn.log_softmax(logits)
    pred = mapped(jnp.argmax(logits, axis=-1), class_map)

    def log_of(classes):
      return jax.nn.logsumexp(jnp.where(table == classes[..., None], log_probs, _NEVER), axis=-1)

    return (pred.astype(jnp.int32), jnp.exp(log_of(pred)), -log_of(labels)), ()

  return terms
