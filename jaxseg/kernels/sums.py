"""Sums over pixels that come out the same however the pixels are spread over devices.

A ReLU or PReLU has a kink: where rounding moves a pixel over it, the pixel's gradient jumps. With float32
sums, whose rounding depends on which device adds what, BatchNorm moved about one pixel in a million in
each step of CGNet, and after ten steps the loss differed by a thousandth between one device and eight.
On a CPU all but the sum along a row, which is never split, is therefore in float64, as PyTorch accumulates
there. On accelerators, whose float64 is slow or not there, it is a float32 sum.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def pixel_sum_reference(x: Float[Array, "*b c"]) -> Float[Array, " c"]:
  """The definition: the sum over all axes but the last, in float32."""
  return x.astype(jnp.float32).sum(tuple(range(x.ndim - 1)))


def pixel_sum(x: Float[Array, "*b c"]) -> Float[Array, " c"]:
  """Equal to `pixel_sum_reference`, and on a CPU to the nearest float32 or nearly.

  It has no derivative of its own: for use inside of one.
  """
  return lax.platform_dependent(x, cpu=_by_rows, default=pixel_sum_reference)


def _by_rows(x):
  # A plain sum along the rows is what the vector units do fast; what is left is small.
  x = x.astype(jnp.float32)
  x = x.sum(-2) if x.ndim > 2 else x
  with jax.enable_x64(True):
    total = lax.convert_element_type(x, jnp.float64).sum(tuple(range(x.ndim - 1)))
    return lax.convert_element_type(total, jnp.float32)
