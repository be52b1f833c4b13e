"""Max and average pooling with their padding written down; zeros of the padding never win, and count."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.ops import stem_conv
from jaxseg.ops.definition import PLATFORMS, by_platform, defined_by
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


def average_pool(
  x: Float[AnyArray, "b h w c"], *, size: int, stride: int, padding: Sides
) -> Float[Array, "b ho wo c"]:
  """The mean of each window, zeros of the padding included; arguments as of `max_pool`."""

  def apply(x, rows):
    return window_mean(x, size=size, stride=stride, padding=(rows, padding[1]))

  return spatial.windowed(apply, jnp.asarray(x), (), size=size, stride=stride, padding=padding[0])


def window_max_reference(x: Array, *, size: int, stride: int, padding: Sides) -> Array:
  """`max_pool` of maps whose rows are all here."""
  return nn.max_pool(x, (size, size), strides=(stride, stride), padding=padding)


# Exports take another form, see `jaxseg.export.forms`.
window_max = defined_by(window_max_reference)(window_max_reference)


def window_mean_reference(x: Array, *, size: int, stride: int, padding: Sides) -> Array:
  """`average_pool` of maps whose rows are all here."""
  return nn.avg_pool(x, (size, size), (stride, stride), padding, count_include_pad=True)


@defined_by(window_mean_reference)
def window_mean(x: Array, *, size: int, stride: int, padding: Sides) -> Array:
  """Equal to `window_mean_reference`; of thin maps in bfloat16 `mean_by_rows` on TPU."""
  fields = dict(size=size, stride=stride, padding=padding)
  if x.dtype != jnp.bfloat16 or not all(isinstance(n, int) for n in x.shape[1:3]):
    return window_mean_reference(x, **fields)
  forms = {"lax": partial(window_mean_reference, **fields), "rows": partial(mean_by_rows, **fields)}
  return by_platform({name: stem_conv.choose_form(name, x.shape[-1]) for name in PLATFORMS}, forms)(x)


def mean_by_rows(x: Array, *, size: int, stride: int, padding: Sides) -> Array:
  """A convolution by ones in the form of `ops.stem_conv`.

  Plainly pooled, an image has its channels in the lanes, and a stem that reads it too needs a copy: by the
  v5e compiler CGNet's step moves 3.09 GB an image so, and 2.67 in this form
  (benchmarks/results/tpu_v5e_aot.md).
  """
  kernel = jnp.ones((size, size, 1, 1), x.dtype) * jnp.eye(x.shape[-1], dtype=x.dtype)
  return stem_conv.by_rows(x, kernel, strides=(stride, stride), padding=padding) / size**2
