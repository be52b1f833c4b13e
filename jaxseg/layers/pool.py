"""Max pooling with its padding written down; zeros of the padding never win."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.ops.definition import defined_by
from jaxseg.types import AnyArray

Sides = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
  x: Float[AnyArray, "b h w c"], *, size: int, stride: int, padding: Sides
) -> Float[Array, "b ho wo c"]:
  """The largest value of each window.

  Args:
    x: maps.
    size: rows and columns of the window.
    stride: between windows.
    padding: rows (above, below) and columns (left, right) around.
  """

  def apply(x, rows):
    return window_max(x, size=size, stride=stride, padding=(rows, padding[1]))

  window = dict(size=size, stride=stride, padding=padding[0], outside=-jnp.inf)
  return spatial.windowed(apply, jnp.asarray(x), (), **window)


def window_max_reference(x: Array, *, size: int, stride: int, padding: Sides) -> Array:
  """`max_pool` of maps whose rows are all here."""
  return nn.max_pool(x, (size, size), strides=(stride, stride), padding=padding)


# Exports take another form, see `jaxseg.export.forms`.
window_max = defined_by(window_max_reference)(window_max_reference)
