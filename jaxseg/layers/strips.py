"""A depthwise square and pairs of strips over it, summed: the convolutions of MSCA (https://arxiv.org/abs/2209.08575).

They are one unit so that a split map needs one exchange of rows for all of them: 12 on each side for
5×5 and 21×1, where one exchange for each convolution would be eight.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.kernels.depthwise import depthwise_conv
from jaxseg.layers import spatial

# kernel (kh, kw, 1, c) and bias (c,)
Weights = tuple[Float[Array, "_ _ 1 c"], Float[Array, " c"]]


def multi_scale_strips(
  x: Float[Array, "b h w c"], square: Weights, strips: Sequence[tuple[Weights, Weights]]
) -> Float[Array, "b h w c"]:
  """The k×k convolution of `x`, plus for each pair a 1×n, then an n×1 of that. Zeros lie around every map.

  Args:
    x: the map.
    square: weights of the k×k, k odd.
    strips: pairs of weights, (1×n, n×1), n odd.
  """
  inner = max((_reach(column) for _, column in strips), default=0)
  outer = inner + _reach(square)
  height = x.shape[1]
  if spatial.shards(height, reach=outer) == 1:
    spatial.ran_whole()
    y = _strips(spatial.whole(x), square, strips, keep=lambda y, _: y, rows=_pad_rows)
    return spatial.split(spatial.whole(y))

  parts = spatial.shards(height)

  def local(x, square, strips):
    x = spatial.exchange(x, outer, outer)

    def keep(y, around):
      # Rows beyond the image are zeros for the next convolution, not what this one makes of zeros.
      return jnp.where(spatial.inside(height, around, around, height // parts), y, 0)

    return _strips(x, square, strips, keep=keep, rows=lambda reach: 0, around=inner)

  return spatial.on_rows(local, x, (square, tuple(strips)))


def strips_reach(square: int, strips: Sequence[int]) -> int:
  """Rows of a neighbour that the unit reads: half the square and half the longest strip."""
  return (square - 1) // 2 + (max(strips, default=1) - 1) // 2


def _strips(x, square, strips, *, keep, rows, around: int = 0):
  """All convolutions, on a map that has `around` more rows on both sides after the first."""
  y = keep(_conv(x, square, rows), around)
  total = _crop(y, around)
  for row, column in strips:
    # No more rows than this strip reads.
    reach = _reach(column) if around else 0
    part = keep(_conv(_crop(y, around - reach), row, rows), reach)
    total = total + _conv(part, column, rows)
  return total


def _conv(x, weights: Weights, rows):
  kernel, bias = weights
  up, side = rows((kernel.shape[0] - 1) // 2), (kernel.shape[1] - 1) // 2
  return depthwise_conv(x, kernel, padding=((up, up), (side, side))) + bias


def _pad_rows(reach: int) -> int:
  return reach


def _reach(weights: Weights) -> int:
  """Rows that a centred kernel reads above its own."""
  return (weights[0].shape[0] - 1) // 2


def _crop(x, rows: int):
  return x[:, rows : x.shape[1] - rows] if rows else x
