"""The convolutions of MSCA as a kernel for TPUs (Pallas), value and derivative.

A block is one image of some channels, which lie in the lanes, the columns in the sublanes. The map stays in
vector memory with zeros around it while the square and every strip pass over it, in float32, rounded once at
the end: main memory sees `x` and the result, or `x`, the gradient and the input's gradient. The derivative
makes the square's and the rows' results again. In main memory a narrow map has its columns in the lanes, and
is turned row by row.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxseg.ops.definition import vector_memory
from jaxseg.ops.lanes import LANES, columns_last, turned

_SUBLANES = 8
# Fewer would leave most of every vector empty.
_FEWEST_CHANNELS = 32


class Sizes(NamedTuple):
  """Sides of the square and lengths of the pairs of strips, all odd, and where their weights lie.

  Attributes:
    square: side of the square.
    strips: length of each pair.
  """

  square: int
  strips: tuple[int, ...]

  @property
  def starts(self) -> list[int]:
    """First row of the weights of the square, then of each pair's 1×n and n×1; then of the biases."""
    lengths = [self.square**2, *(n for n in self.strips for _ in range(2))]
    return [0, *itertools.accumulate(lengths)]

  @property
  def reach(self) -> int:
    """Rows that the longest strip reads above its own."""
    return max(self.strips) // 2

  @property
  def margin(self) -> int:
    """Columns of zeros beside a map: whole sublanes, as many as a strip or the square reads."""
    return -(-max(self.reach, self.square // 2) // _SUBLANES) * _SUBLANES


def fits(shape: Sequence[int], dtype: Any, sizes: Sizes) -> bool:
  """Whether the kernels take a map b h w c: columns that fill the sublanes, a block that fits on the chip."""
  _, h, w, c = shape
  if not all(isinstance(n, int) for n in shape) or w % _SUBLANES or not sizes.strips:
    return False  # of a symbolic size nothing can be asked
  if c < _FEWEST_CHANNELS:
    return False
  # The compiler needs some for itself.
  return _bytes_of_block(h, w, c, jnp.dtype(dtype).itemsize, sizes) < 0.85 * vector_memory()


def _bytes_of_block(h, w, c, itemsize, sizes, *, backward: bool = True) -> int:
  """Maps in float32, and those in and out, each twice: six and three for the derivative."""
  lanes = -(-_channels(c) // LANES) * LANES
  around, beside, above = (
    rows * columns for rows, columns in (_around(h, w, sizes), _beside(h, w, sizes), _above(h, w, sizes))
  )
  if backward:
    return lanes * (2 * 4 * (around + beside + above) + 6 * itemsize * h * w)
  return lanes * (4 * (around + beside + above + h * w) + 4 * itemsize * h * w)


def _channels(c: int) -> int:
  return LANES if c % LANES == 0 else c


def _around(h, w, sizes) -> tuple[int, int]:
  return h + sizes.square - 1, w + 2 * sizes.margin


def _beside(h, w, sizes) -> tuple[int, int]:
  return h, w + 2 * sizes.margin


def _above(h, w, sizes) -> tuple[int, int]:
  return h + 2 * sizes.reach, w


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def msca(
  x: Float[Array, "b h w c"], weights: Float[Array, "n c"], sizes: Sizes, interpret: bool = False
) -> Float[Array, "b h w c"]:
  """The square of `x`, and for each pair the n×1 of the 1×n of that, summed; zeros lie around every map.

  Args:
    x: the map.
    weights: float32, the taps of the square by rows, of each pair's 1×n and n×1, then the biases in this
      order.
    sizes: of the kernels.
    interpret: run on any device, slowly.
  """
  return _run_forward(x, weights, sizes, interpret)


def _backward(sizes, interpret, kept, dy):
  return _run_backward(*kept, dy, sizes, interpret)


msca.defvjp(
  lambda x, weights, sizes, interpret: (msca(x, weights, sizes, interpret), (x, weights)), _backward
)


# Jitted, so that equal units of a network are traced once.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _run_forward(x, weights, sizes, interpret):
  b, h, w, c = x.shape
  lanes, n, turn = _channels(c), len(weights), columns_last(w, c)
  y, block = turned(x, turn), _block(h, w, lanes, turn)
  shapes = (_around(h, w, sizes), _beside(h, w, sizes), _above(h, w, sizes), (h, w))
  found = pl.pallas_call(
    functools.partial(_forward_kernel, sizes, w),
    grid=(c // lanes, b),
    in_specs=[pl.BlockSpec((n, lanes), lambda channels, image: (0, channels)), block],
    out_specs=block,
    out_shape=jax.ShapeDtypeStruct(y.shape, x.dtype),
    scratch_shapes=[pltpu.VMEM((*shape, lanes), jnp.float32) for shape in shapes],
    compiler_params=_parameters(x, sizes, "parallel", backward=False),
    cost_estimate=_cost(x, n, passes=1, maps=2),
    interpret=interpret,
  )(weights, y)
  return turned(found, turn)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _run_backward(x, weights, dy, sizes, interpret):
  b, h, w, c = x.shape
  lanes, n, turn = _channels(c), len(weights), columns_last(w, c)
  x_in, dy_in, block = turned(x, turn), turned(dy, turn), _block(h, w, lanes, turn)
  table = pl.BlockSpec((n, lanes), lambda channels, image: (0, channels))
  around, beside, above = (make(h, w, sizes) for make in (_around, _beside, _above))
  shapes = (around, beside, above, above, beside, around, (n, _SUBLANES))
  dx, of_weights = pl.pallas_call(
    functools.partial(_backward_kernel, sizes, w),
    grid=(c // lanes, b),
    in_specs=[table, block, block],
    out_specs=[block, table],
    out_shape=[
      jax.ShapeDtypeStruct(x_in.shape, x.dtype),
      jax.ShapeDtypeStruct(weights.shape, jnp.float32),
    ],
    scratch_shapes=[pltpu.VMEM((*shape, lanes), jnp.float32) for shape in shapes],
    # The weights' gradient is added up over the images.
    compiler_params=_parameters(x, sizes, "arbitrary", backward=True),
    cost_estimate=_cost(x, n, passes=3, maps=3),
    interpret=interpret,
  )(weights, x_in, dy_in)
  return turned(dx, turn), of_weights


def _block(h, w, lanes, turn):
  """One image of some channels, which are all of them where its columns come last."""
  row = (lanes, w) if turn else (w, lanes)
  return pl.BlockSpec((1, h, *row), lambda channels, image: (image, 0, 0, channels))


def _parameters(x, sizes, images, *, backward: bool):
  # What a kernel reserves the compiler cannot use for maps of its neighbours.
  room = int(1.1 * _bytes_of_block(*x.shape[1:], x.dtype.itemsize, sizes, backward=backward)) + (4 << 20)
  return pltpu.CompilerParams(dimension_semantics=("parallel", images), vmem_limit_bytes=room)


def _cost(x, n, *, passes, maps):
  b, h, w, c = x.shape
  lanes = c if columns_last(w, c) else -(-c // LANES) * LANES  # as the tiles lie in memory
  moved = maps * b * h * w * lanes * x.dtype.itemsize
  return pl.CostEstimate(flops=2 * passes * n * x.size, transcendentals=0, bytes_accessed=moved)


def _forward_kernel(sizes, w, weights, x, y, padded, square, rows, total):
  h = x.shape[1]
  _fill(padded, x, w, top=sizes.square // 2, left=sizes.margin)
  _clear(square)
  _clear(rows)
  _square(sizes, weights, padded, square, h, w)

  def start(i, _):
    total[i] = square[i, pl.ds(sizes.margin, w), :]
    return 0

  lax.fori_loop(0, h, start, 0)
  for pair, n in enumerate(sizes.strips):
    _rows(sizes, pair, weights, square, rows, h, w)
    taps, bias = _taps(sizes, weights, 2 * pair + 2)

    def column(i, _, n=n, taps=taps, bias=bias):
      first = sizes.reach - n // 2
      total[i] = sum((rows[first + i + k] * taps(k) for k in range(n)), total[i] + bias)
      return 0

    lax.fori_loop(0, h, column, 0)

  def finish(i, _):
    _write(y, i, total[i])
    return 0

  lax.fori_loop(0, h, finish, 0)


def _backward_kernel(
  sizes, w, weights, x, dy, dx, dweights, padded, square, rows, of_y, of_rows, of_square, sums
):
  h = x.shape[1]
  half, margin, starts = sizes.square // 2, sizes.margin, sizes.starts
  columns = pl.ds(margin, w)
  biases = starts[-1]
  _fill(padded, x, w, top=half, left=margin)
  _fill(of_y, dy, w, top=sizes.reach, left=0)
  _fill(of_square, dy, w, top=half, left=margin)
  for scratch in (square, rows, of_rows, sums):
    _clear(scratch)
  _square(sizes, weights, padded, square, h, w)

  def add(index, product):
    sums[index] = sums[index] + product.reshape(w // _SUBLANES, _SUBLANES, -1).sum(0)

  for pair, n in enumerate(sizes.strips):
    _rows(sizes, pair, weights, square, rows, h, w)
    row_taps, _ = _taps(sizes, weights, 2 * pair + 1)
    column_taps, _ = _taps(sizes, weights, 2 * pair + 2)
    first = sizes.reach - n // 2

    def column(i, _, n=n, pair=pair, taps=column_taps, first=first):
      gradient = of_y[sizes.reach + i]
      add(biases + 2 * pair + 2, gradient)
      for k in range(n):
        add(starts[2 * pair + 2] + k, rows[first + i + k] * gradient)
      of_rows[i, columns, :] = sum(of_y[first + i + n - 1 - k] * taps(k) for k in range(n))
      return 0

    lax.fori_loop(0, h, column, 0)

    def row(i, _, n=n, pair=pair, taps=row_taps):
      gradient = of_rows[i, columns, :]
      add(biases + 2 * pair + 1, gradient)
      for k in range(n):
        add(starts[2 * pair + 1] + k, square[i, pl.ds(margin - n // 2 + k, w), :] * gradient)
      terms = (of_rows[i, pl.ds(margin + n // 2 - k, w), :] * taps(k) for k in range(n))
      of_square[half + i, columns, :] = sum(terms, of_square[half + i, columns, :])
      return 0

    lax.fori_loop(0, h, row, 0)

  taps, _ = _taps(sizes, weights, 0)
  places = list(itertools.product(range(sizes.square), repeat=2))

  def finish(i, _):
    gradient = of_square[half + i, columns, :]
    add(biases, gradient)
    for k, (r, s) in enumerate(places):
      add(k, padded[i + r, pl.ds(margin - half + s, w), :] * gradient)
    terms = (
      of_square[i + 2 * half - r, pl.ds(margin + half - s, w), :] * taps(k) for k, (r, s) in enumerate(places)
    )
    _write(dx, i, sum(terms))
    return 0

  lax.fori_loop(0, h, finish, 0)

  @pl.when(pl.program_id(1) == 0)
  def _():
    dweights[...] = jnp.zeros_like(dweights)

  for index in range(sums.shape[0]):
    at = slice(index, index + 1)
    dweights[at, :] = dweights[at, :] + sums[index].sum(0, keepdims=True)


def _square(sizes, weights, padded, square, h, w) -> None:
  """`square` becomes the square convolution of what `padded` holds."""
  taps, bias = _taps(sizes, weights, 0)
  left = sizes.margin - sizes.square // 2
  places = list(itertools.product(range(sizes.square), repeat=2))

  def row(i, _):
    terms = (padded[i + r, pl.ds(left + s, w), :] * taps(k) for k, (r, s) in enumerate(places))
    square[i, pl.ds(sizes.margin, w), :] = sum(terms, bias)
    return 0

  lax.fori_loop(0, h, row, 0)


def _rows(sizes, pair, weights, square, rows, h, w) -> None:
  """`rows` becomes the 1×n convolution of `square`."""
  taps, bias = _taps(sizes, weights, 2 * pair + 1)
  n = sizes.strips[pair]

  def row(i, _):
    terms = (square[i, pl.ds(sizes.margin - n // 2 + k, w), :] * taps(k) for k in range(n))
    rows[sizes.reach + i] = sum(terms, bias)
    return 0

  lax.fori_loop(0, h, row, 0)


def _taps(sizes, weights, convolution):
  """(k → weights (1, c) of tap k, bias (1, c)) of the square, 0, or of the strips from 1 on."""
  first, bias = sizes.starts[convolution], sizes.starts[-1] + convolution
  return (lambda k: weights[first + k : first + k + 1, :]), weights[bias : bias + 1, :]


def _fill(scratch, x, w, *, top: int, left: int) -> None:
  """`x`, a map of `w` columns, in float32, with zeros around it."""
  _clear(scratch)

  def row(i, _):
    found = x[0, i].astype(jnp.float32)
    scratch[top + i, pl.ds(left, w), :] = found if found.shape == (w, scratch.shape[2]) else found.T
    return 0

  lax.fori_loop(0, x.shape[1], row, 0)


def _write(y, i, row) -> None:
  """Row i of the block, from columns × channels."""
  y[0, i] = (row if row.shape == y.shape[2:] else row.T).astype(y.dtype)


def _clear(scratch) -> None:
  def row(i, _):
    scratch[i] = jnp.zeros(scratch.shape[1:], scratch.dtype)
    return 0

  lax.fori_loop(0, scratch.shape[0], row, 0)
