"""A model as a function, and its outputs as label maps."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxseg.errors import UserError
from jaxseg.evaluation.decision import labels_of_logits, labels_of_strip
from jaxseg.layers.upsampled import map_upsampled
from jaxseg.types import AnyArray, Image, Outputs

# (variables, normalised image) → outputs of a model, or logits alone, or a label map of the image's size.
PredictFn = Callable[[Mapping[str, Any], Image], Any]


def label_map(
  outputs: Outputs | Float[AnyArray, "b _ _ k"] | Integer[AnyArray, "b _ _"],
  size: tuple[int, int],
  *,
  align_corners: bool = False,
  threshold: float | None = None,
) -> Int[Array, "b h w"]:
  """Class of every pixel at `size` (rows, columns): logits are resized, then the largest wins.

  With a `threshold`, a label of all classes that reach it (`decision.py`). What is a label map already must
  have that size.
  """
  logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
  if logits.ndim == 3:
    if tuple(logits.shape[1:]) != tuple(size):
      raise UserError(
        f"the label map is {logits.shape[1]}x{logits.shape[2]}, expected the image's {size[0]}x{size[1]}"
      )
    return jnp.asarray(logits).astype(jnp.int32)
  logits = jnp.asarray(logits)
  if tuple(logits.shape[1:3]) == tuple(size):
    return labels_of_logits(logits.astype(jnp.float32), threshold)
  # The map of all classes at the image's size is never held.
  marks = jnp.zeros((logits.shape[0], *size), jnp.int8)
  (labels,), _ = map_upsampled(labels_of_strip(threshold), logits, (marks,), align_corners=align_corners)
  return labels


def forward(model: nn.Module | PredictFn) -> PredictFn:
  """A model as the function (variables, image) → outputs, in evaluation mode; a function as it is."""
  if not isinstance(model, nn.Module):
    return model
  return lambda variables, image: model.apply(variables, image, train=False)
