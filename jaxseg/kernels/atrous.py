"""Atrous 3×3 convolution as one product a tap over the pixels where the tap meets the image.

At a large rate most taps of a small map read padding: at rate 36 on a 64×64 map four
ninths of them do for every pixel on average. XLA multiplies those zeros; a matrix
product over each tap's valid window does not, and its derivative is products as well.
"""

from collections.abc import Iterator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.kernels.definition import defined_by

# Below this share of useful taps the products win on a CPU even against the convolution's better locality.
_WORTH_IT = 0.7
# Kernels of this size leave the caches, where XLA:CPU's dilated convolution falls behind in any case.
_LARGE_KERNEL = 9 * 2048 * 512


def atrous_conv_reference(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"], *, rate: int
) -> Float[Array, "b h w k"]:
  """The definition: a dilated convolution whose zero padding keeps the size."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    ((rate, rate), (rate, rate)),
    rhs_dilation=(rate, rate),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@defined_by(atrous_conv_reference)
def atrous_conv(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"], *, rate: int
) -> Float[Array, "b h w k"]:
  """Equal to `atrous_conv_reference`, in whichever form the shapes make faster."""
  if pays_off(x.shape[1:3], kernel.shape, rate):
    return by_taps(x, kernel, rate=rate)
  return atrous_conv_reference(x, kernel, rate=rate)


def pays_off(size: tuple[int, int], kernel_shape: tuple[int, ...], rate: int) -> bool:
  """Whether products over valid windows beat the convolution for this map, kernel and rate."""
  share = _share(size[0], rate) * _share(size[1], rate)
  large = kernel_shape[0] * kernel_shape[1] * kernel_shape[2] * kernel_shape[3] >= _LARGE_KERNEL
  return rate > 1 and (share < _WORTH_IT or (large and share < 0.9))


def by_taps(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"], *, rate: int, surrounded: bool = False
) -> Float[Array, "b _ w k"]:
  """Equal to `atrous_conv_reference`: the centre tap everywhere, each other one on its window.

  `surrounded`: `x` has `rate` more rows above and below, which are read and have no result of their own.
  """
  around = rate if surrounded else 0
  h, w = x.shape[1] - 2 * around, x.shape[2]
  total = x[:, around : around + h] @ kernel[1, 1]
  zero = jnp.zeros((), total.dtype)
  # In the order of `_windows`, so that sums round alike.
  all_rows = ((i, slice(i * rate, i * rate + h), 0) for i in (1, 0, 2))
  for i, rows, above in all_rows if surrounded else _windows(h, rate):
    for j, columns, left in _windows(w, rate):
      if i == j == 1:
        continue
      part = x[:, rows, columns] @ kernel[i, j]
      pad_rows = (above, h - above - part.shape[1], 0)
      pad_columns = (left, w - left - part.shape[2], 0)
      total = total + lax.pad(part, zero, [(0, 0, 0), pad_rows, pad_columns, (0, 0, 0)])
  return total


def _share(n: int, rate: int) -> float:
  """Part of the taps of an axis of n pixels that do not read padding."""
  return (n + 2 * max(n - rate, 0)) / (3 * n)


def _windows(n: int, rate: int) -> Iterator[tuple[int, slice, int]]:
  """(tap, what it reads of an axis of n pixels, where its output begins), of taps that read anything."""
  yield 1, slice(0, n), 0
  if rate < n:
    yield 0, slice(0, n - rate), rate
    yield 2, slice(rate, n), 0
