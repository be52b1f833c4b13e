"""Mix-FFN as a kernel for TPUs (Pallas), value and derivative.

A block is some rows of one image, and its hidden map lives in vector memory only, 128 channels at a time:
main memory sees the narrow maps before and after, where it would see the hidden map, four to eight times as
wide, some fifteen times a training step. The derivative makes the hidden map again. Sums are float32 and
rounded once; the products take 16 bits. A narrow map comes and goes with its columns in the lanes, which its
channels would not fill.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxseg.ops.definition import vector_memory
from jaxseg.ops.lanes import LANES, columns_last, turned

_SUBLANES = 16  # of 16-bit numbers
_MARGIN = 8  # columns of zeros beside the hidden map: whole sublanes of float32
_HALO = 2  # rows that a block brings along of each neighbour
_MOST_PIXELS = 4096  # of a block

_product = functools.partial(lax.dot_general, preferred_element_type=jnp.float32)
_PLAIN, _BOTH_LAST = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
_PLACES = tuple(itertools.product(range(3), repeat=2))
# Rows of the table of a slice's weights: the taps of the convolution, its bias, that of the first product.
_BIAS, _BIAS1 = len(_PLACES), len(_PLACES) + 1


def fits(shape: Sequence[int], hidden: int, dtype: Any) -> bool:
  """Whether the kernels take a map b h w c: 16 bits, full sublanes and lanes, a block that fits."""
  if not all(isinstance(n, int) for n in shape):
    return False  # of a symbolic size nothing can be asked
  _, h, w, c = shape
  if jnp.dtype(dtype).itemsize != 2 or w % _SUBLANES or hidden % LANES or h < _HALO:
    return False
  return _rows(h, w, c, hidden) > 0


def _rows(h: int, w: int, c: int, hidden: int) -> int:
  """Rows of a block: all, or an even divisor, so that its neighbours' rows are blocks too; 0 if none fits."""
  # The compiler needs some memory for itself.
  room = 0.6 * vector_memory()
  rows = [h, *(n for n in range(2, h, 2) if h % n == 0)]
  return max((n for n in rows if n * w <= _MOST_PIXELS and _bytes(n, w, c, hidden) <= room), default=0)


def _bytes(rows: int, w: int, c: int, hidden: int) -> int:
  """Of the derivative's block: weights and their gradients, maps in and out twice, what is made of them."""
  pixels, wide = (rows + 2 * _HALO) * (w + 2 * _MARGIN), -(-c // LANES) * LANES
  return 2 * 2 * hidden * (2 + 4) * c + pixels * (wide * (3 * 2 * 2 + 4 + 2 * 2) + LANES * (3 * 4 + 2 * 2))


def mix_ffn(
  x: Float[Array, "b h w c"],
  fc1: tuple[Float[Array, "c n"], Float[Array, " n"]],
  dwconv: tuple[Float[Array, "3 3 1 n"], Float[Array, " n"]],
  fc2: tuple[Float[Array, "n c"], Float[Array, " c"]],
  *,
  interpret: bool = False,
) -> Float[Array, "b h w c"]:
  """`ops.mix_ffn.mix_ffn_reference` of shapes that `fits` takes; `interpret` runs anywhere, slowly."""
  c, n = fc1[0].shape

  def slices(y):
    """(n / 128, rows, 128) of what has the hidden channels last."""
    return y.reshape(-1, n // LANES, LANES).transpose(1, 0, 2)

  vectors = [dwconv[0].reshape(-1, n), dwconv[1][None], fc1[1][None]]
  table = slices(jnp.concatenate([y.astype(jnp.float32) for y in vectors]))
  table = jnp.pad(table, [(0, 0), (0, _SUBLANES - table.shape[1]), (0, 0)])
  weights = (slices(fc1[0].astype(x.dtype)), slices(fc2[0].T.astype(x.dtype)), table)
  rows = _rows(*x.shape[1:], n)
  return _mix_ffn(x, weights, fc2[1].astype(jnp.float32).reshape(1, c), rows, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _mix_ffn(x, weights, bias2, rows, interpret):
  """Weights are slices of 128 hidden channels: fc1 s c 128, fc2's transpose s c 128, the table s 16 128."""
  return _run_forward(x, weights, bias2, rows, interpret)


def _backward(rows, interpret, kept, dy):
  x, weights = kept
  dx, *of_weights, of_bias2 = _run_backward(x, weights, dy, rows, interpret)
  return dx, tuple(d.astype(w.dtype) for d, w in zip(of_weights, weights, strict=True)), of_bias2


_mix_ffn.defvjp(lambda x, weights, *rest: (_mix_ffn(x, weights, *rest), (x, weights)), _backward)


def _specs(x, rows):
  """The grid, blocks of a map and of the rows above and below it, and of what is the same for all of them."""
  b, h, w, c = x.shape
  tall, last = rows // _HALO, -(-h // _HALO) - 1
  row = (c, w) if columns_last(w, c) else (w, c)
  block = pl.BlockSpec((1, rows, *row), lambda image, part: (image, part, 0, 0))
  above = pl.BlockSpec((1, _HALO, *row), lambda image, part: (image, jnp.maximum(part * tall - 1, 0), 0, 0))
  below = pl.BlockSpec(
    (1, _HALO, *row), lambda image, part: (image, jnp.minimum((part + 1) * tall, last), 0, 0)
  )

  def whole(y):
    return pl.BlockSpec(y.shape, lambda image, part: (0,) * y.ndim)

  return (b, h // rows), [above, block, below], whole


# Jitted, so that equal blocks of a network are traced once.
@functools.partial(jax.jit, static_argnums=(3, 4))
def _run_forward(x, weights, bias2, rows, interpret):
  grid, around, whole = _specs(x, rows)
  w, c = x.shape[2:]
  turn = columns_last(w, c)
  y = turned(x, turn)
  found = pl.pallas_call(
    functools.partial(_forward_kernel, w),
    grid=grid,
    in_specs=[*map(whole, weights), whole(bias2), *around],
    out_specs=around[1],
    out_shape=jax.ShapeDtypeStruct(y.shape, y.dtype),
    scratch_shapes=[
      pltpu.VMEM(((rows + 2) * w, c), x.dtype),
      pltpu.VMEM((rows + 2, w + 2 * _MARGIN, LANES), jnp.float32),
      pltpu.VMEM((rows, w, LANES), x.dtype),
      pltpu.VMEM((rows * w, c), jnp.float32),
    ],
    compiler_params=_parameters(x, weights, rows, "parallel"),
    cost_estimate=_cost(x, weights, products=2, maps=2),
    interpret=interpret,
  )(*weights, bias2, y, y, y)
  return turned(found, turn)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _run_backward(x, weights, dy, rows, interpret):
  grid, around, whole = _specs(x, rows)
  w, c = x.shape[2:]
  wide, turn = w + 2 * _MARGIN, columns_last(w, c)
  x_in, dy_in = turned(x, turn), turned(dy, turn)
  sums = [jax.ShapeDtypeStruct(y.shape, jnp.float32) for y in weights]
  sums.append(jax.ShapeDtypeStruct((1, c), jnp.float32))
  dx, *of_weights = pl.pallas_call(
    functools.partial(_backward_kernel, w),
    grid=grid,
    in_specs=[*map(whole, weights), *around, *around],
    out_specs=[around[1], *map(whole, sums)],
    out_shape=[jax.ShapeDtypeStruct(x_in.shape, x.dtype), *sums],
    scratch_shapes=[
      pltpu.VMEM(((rows + 2 * _HALO) * w, c), x.dtype),
      pltpu.VMEM(((rows + 2) * w, c), x.dtype),
      pltpu.VMEM((c, rows * w), x.dtype),
      pltpu.VMEM((c, rows * w), x.dtype),
      pltpu.VMEM((rows + 2 * _HALO, wide, LANES), jnp.float32),
      pltpu.VMEM((rows + 2, w, LANES), jnp.float32),
      pltpu.VMEM((rows + 2, w, LANES), x.dtype),
      pltpu.VMEM((rows + 2, wide, LANES), jnp.float32),
      pltpu.VMEM((rows, w, LANES), x.dtype),
      pltpu.VMEM((_SUBLANES, _MARGIN, LANES), jnp.float32),
      pltpu.VMEM((rows * w, c), jnp.float32),
    ],
    # The weights' gradients are added up over all blocks.
    compiler_params=_parameters(x, weights, rows, "arbitrary"),
    cost_estimate=_cost(x, weights, products=6, maps=3),
    interpret=interpret,
  )(*weights, x_in, x_in, x_in, dy_in, dy_in, dy_in)
  return turned(dx, turn), *of_weights


def _parameters(x, weights, rows, blocks):
  # What a kernel reserves the compiler cannot use for maps of its neighbours.
  room = int(1.3 * _bytes(rows, *x.shape[2:], len(weights[0]) * LANES)) + (2 << 20)
  return pltpu.CompilerParams(dimension_semantics=(blocks, blocks), vmem_limit_bytes=room)


def _cost(x, weights, *, products, maps):
  _, _, w, c = x.shape
  # As the tiles lie in memory.
  pixels, lanes = math.prod(x.shape[:3]), c if columns_last(w, c) else -(-c // LANES) * LANES
  hidden = pixels * len(weights[0]) * LANES
  moved = maps * pixels * lanes * x.dtype.itemsize
  return pl.CostEstimate(
    flops=2 * products * hidden * x.shape[3], transcendentals=products * hidden // 2, bytes_accessed=moved
  )


def _forward_kernel(w, fc1, fc2, table, bias2, above, x, below, y, flat, hidden, active, total):
  rows, in_image = x.shape[1], _in_image()
  _read((above, x, below), 1, in_image, flat)
  _clear_margins(hidden)
  total[...] = jnp.broadcast_to(bias2[...], total.shape)

  def part(k, _):
    _first_product(fc1, table, k, flat, 1, in_image, hidden)

    def row(i, _):
      active[i] = _gelu(_convolved(table, k, hidden, i, w))[0].astype(active.dtype)
      return 0

    lax.fori_loop(0, rows, row, 0)
    total[...] += _product(active[...].reshape(-1, LANES), fc2[k], _BOTH_LAST)
    return 0

  lax.fori_loop(0, fc1.shape[0], part, 0)
  _write(total, y)


def _backward_kernel(
  w,
  fc1,
  fc2,
  table,
  above,
  x,
  below,
  dy_above,
  dy,
  dy_below,
  dx,
  of_fc1,
  of_fc2,
  of_table,
  of_bias2,
  flat,
  dy_flat,
  flat_turned,
  dy_turned,
  hidden,
  of_active,
  active,
  gradient,
  of_hidden,
  sums,
  total,
):
  rows, in_image = x.shape[1], _in_image()
  own = pl.ds(w, rows * w)  # of `dy_flat`

  @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
  def _():
    for y in (of_fc1, of_fc2, of_table, of_bias2):
      y[...] = jnp.zeros_like(y)

  _read((above, x, below), _HALO, in_image, flat)
  _read((dy_above, dy, dy_below), 1, in_image, dy_flat)
  flat_turned[...], dy_turned[...] = flat[pl.ds(_HALO * w, rows * w), :].T, dy_flat[own, :].T
  of_bias2[...] += dy_flat[own, :].astype(jnp.float32).sum(0, keepdims=True)
  _clear_margins(hidden)
  _clear_margins(gradient)
  total[...] = jnp.zeros_like(total)

  def add(index, product):
    sums[index] += product.reshape(w // _MARGIN, _MARGIN, LANES).sum(0)

  def part(k, _):
    sums[...] = jnp.zeros_like(sums)
    _first_product(fc1, table, k, flat, _HALO, in_image, hidden)
    # Beyond the image `dy_flat` is zero.
    of_active[...] = _product(dy_flat[...], fc2[k], _PLAIN).reshape(of_active.shape)

    def row(i, _):  # of the convolution's result, and one on each side
      value, slope = _gelu(_convolved(table, k, hidden, i, w))
      active[i] = value.astype(active.dtype)
      found = of_active[i] * slope
      gradient[i, pl.ds(_MARGIN, w), :] = found
      mine = jnp.where((i > 0) & (i <= rows), found, 0.0)
      add(_BIAS, mine)
      for place, (r, s) in enumerate(_PLACES):
        add(place, hidden[i + r, pl.ds(_MARGIN - 1 + s, w), :] * mine)
      return 0

    lax.fori_loop(0, rows + 2, row, 0)

    def row_before(i, _):  # of the hidden map
      terms = (
        gradient[i + 2 - r, pl.ds(_MARGIN + 1 - s, w), :] * table[k, pl.ds(place, 1), :]
        for place, (r, s) in enumerate(_PLACES)
      )
      found = sum(terms)
      add(_BIAS1, found)
      of_hidden[i] = found.astype(of_hidden.dtype)
      return 0

    lax.fori_loop(0, rows, row_before, 0)
    of_table[k] += sums[...].sum(1)
    before = of_hidden[...].reshape(-1, LANES)
    of_fc1[k] += _product(flat_turned[...], before, _PLAIN)
    of_fc2[k] += _product(dy_turned[...], active[1 : rows + 1].reshape(-1, LANES), _PLAIN)
    total[...] += _product(before, fc1[k], _BOTH_LAST)
    return 0

  lax.fori_loop(0, fc1.shape[0], part, 0)
  _write(total, dx)


def _in_image():
  """Whether the rows above the block and those below lie in the image."""
  return pl.program_id(1) > 0, pl.program_id(1) < pl.num_programs(1) - 1


def _read(block, halo: int, in_image, flat) -> None:
  """`flat` (pixels, c) becomes `halo` rows above the block, its own and those below, zeros beyond all."""
  above, x, below = block
  c, rows = flat.shape[1], x.shape[1]
  w = flat.shape[0] // (rows + 2 * halo)

  def copy(y, first, start, count, is_there=None):
    def row(i, _):
      found = y[0, first + i]
      found = found if found.shape[1] == c else found.T
      flat[pl.ds((start + i) * w, w), :] = found if is_there is None else jnp.where(is_there, found, 0)
      return 0

    lax.fori_loop(0, count, row, 0)

  copy(above, _HALO - halo, 0, halo, in_image[0])
  copy(x, 0, halo, rows)
  copy(below, 0, halo + rows, halo, in_image[1])


def _write(total, y) -> None:
  """The block becomes what `total` (pixels, c) holds."""
  c, rows = total.shape[1], y.shape[1]
  w = total.shape[0] // rows

  def row(i, _):
    found = total[pl.ds(i * w, w), :]
    y[0, i] = (found if y.shape[3] == c else found.T).astype(y.dtype)
    return 0

  lax.fori_loop(0, rows, row, 0)


def _first_product(fc1, table, k, flat, halo: int, in_image, hidden) -> None:
  """`hidden` becomes slice k of the hidden map; beyond the image it is zero, which the bias is not."""
  rows, columns = hidden.shape[0], pl.ds(_MARGIN, hidden.shape[1] - 2 * _MARGIN)
  found = _product(flat[...], fc1[k], _PLAIN) + table[k, pl.ds(_BIAS1, 1), :]
  hidden[:, columns, :] = found.reshape(rows, -1, LANES)
  for is_there, first in zip(in_image, (0, rows - halo), strict=True):
    at = pl.ds(first, halo)
    hidden[at, columns, :] = jnp.where(is_there, hidden[at, columns, :], 0.0)


def _convolved(table, k, hidden, i, w):
  """Row i of slice k's convolution, (w, 128)."""
  terms = (
    hidden[i + r, pl.ds(_MARGIN - 1 + s, w), :] * table[k, pl.ds(place, 1), :]
    for place, (r, s) in enumerate(_PLACES)
  )
  return sum(terms, table[k, pl.ds(_BIAS, 1), :])


def _gelu(x):
  """(x · Φ(x), its derivative)."""
  distribution = 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))
  density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
  return x * distribution, distribution + x * density


def _clear_margins(scratch) -> None:
  width = scratch.shape[1]
  for side in (pl.ds(0, _MARGIN), pl.ds(width - _MARGIN, _MARGIN)):
    scratch[:, side, :] = jnp.zeros((scratch.shape[0], _MARGIN, LANES), scratch.dtype)
