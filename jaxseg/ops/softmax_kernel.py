"""`upsampled_cross_entropy`'s numbers of a pixel as a kernel for TPUs (Pallas), value and derivative.

The upsampled logits live in registers only. A block is a few rows of one image's small map, classes in the
sublanes and columns in the lanes, with the row above and the row below. The upsampled pixels of a small row
are made as phases: every `factor`-th row and column for itself, each a weighted sum of a row and its
neighbour, and of that and itself shifted by a lane. What is interleaved are single numbers of a pixel, by
gathers within the lanes. Maps whose columns do not fill the lanes are filled up; what is made there is finite
or not, and nobody reads it.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

# Of a block of the small map, in float32: a kernel holds six or so in vector memory.
_BLOCK_BYTES = 1 << 20
_SUBLANES, _LANES = 8, 128
# Below, most lanes would be empty.
_FEWEST_COLUMNS = _LANES // 2

# A phase's weights: (of the neighbour, of the pixel itself), and whether the neighbour comes before. Those of
# columns are numbers and unrolled in the kernel, those of rows are traced, in a loop.
Phase = tuple[float | Array, float | Array, bool | Array]


def fits(logits_shape: Sequence[int], size: tuple[int, int], *, align_corners: bool) -> bool:
  """Whether the kernel takes logits b h w k to `size`: factors of 1, 2, 4 or 8, not too few columns."""
  _, h, w, k = logits_shape
  if not all(isinstance(n, int) for n in (h, w, k, *size)):
    return False  # of a symbolic size nothing can be asked
  if align_corners or size[0] % h or size[1] % w or w < _FEWEST_COLUMNS or _SUBLANES % (size[1] // w):
    return False
  return _rows(h, _filled(w), k, (size[0] // h, size[1] // w)) > 0


def _filled(columns: int) -> int:
  return -(-columns // _LANES) * _LANES


def _fill(y, columns: int):
  """Columns, the last axis, filled up with zeros."""
  return jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, columns - y.shape[-1])])


def terms(logits: Float[Array, "b h w k"], labels: Int[Array, "b H W"], *, interpret: bool = False):
  """(log Σ exp of the upsampled logits, the label's logit or 0 where it is no class), float32 b H W."""
  return _terms(logits, labels, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _terms(logits, labels, interpret):
  return _forward(logits, labels, interpret)[0]


def _forward(logits, labels, interpret):
  w, width = logits.shape[2], labels.shape[2]
  x = _fill(logits.transpose(0, 1, 3, 2), _filled(w))
  labels = _fill(labels, _filled(width))
  out = jax.ShapeDtypeStruct(labels.shape, jnp.float32)
  found = _call(_forward_kernel, (w, width), x, (labels,), (out, out), interpret)
  return tuple(y[..., :width] for y in found), (x, labels, found[0], w)


def _terms_bwd(interpret, kept, cotangents):
  x, labels, log_normaliser, w = kept
  width = cotangents[0].shape[-1]
  cotangents = (_fill(y, labels.shape[-1]) for y in cotangents)
  out = jax.ShapeDtypeStruct(x.shape, x.dtype)
  pixels = (labels, log_normaliser, *cotangents)
  (dx,) = _call(_backward_kernel, (w, width), x, pixels, (out,), interpret)
  return dx[..., :w].transpose(0, 1, 3, 2), None


_terms.defvjp(_forward, _terms_bwd)


def _call(kernel, columns, x, pixels, outs, interpret):
  """`kernel` of each block of x b h k w, with the rows around it, and of `pixels` b H W.

  `columns` are those of the small and of the large map that are none of the filling.
  """
  b, h, k, w = x.shape
  height = pixels[0].shape[1]
  factors = (height // h, columns[1] // columns[0])
  rows = _rows(h, w, k, factors)

  def spec(y, offset=None):
    per_row, rest = (1 if len(y.shape) == 4 else factors[0]), (0,) * (len(y.shape) - 2)
    if offset is None:
      return pl.BlockSpec((1, rows * per_row, *y.shape[2:]), lambda i, n: (i, n, *rest))
    # The row before or after the block, which repeats beyond the edge; of pixels the tile that has its rows.
    tall = _SUBLANES if len(rest) == 1 else 1
    return pl.BlockSpec(
      (1, tall, *y.shape[2:]),
      lambda i, n: (i, lax.div(jnp.clip(n * rows + offset, 0, h - 1) * per_row, tall), *rest),
    )

  around = (-1, rows)
  arrays = [(x, None), *((x, n) for n in around), *((y, None) for y in pixels)]
  scratch = [pltpu.VMEM((factors[1], rows * factors[0], w), y.dtype) for y in pixels]
  if outs[0].shape == x.shape:  # the gradient needs the pixels of the rows around too
    arrays += [(y, n) for y in pixels for n in around]
    scratch.append(pltpu.VMEM((rows + 2, k, w), jnp.float32))
  else:
    scratch += [pltpu.VMEM((factors[1], rows * factors[0], w), y.dtype) for y in outs]
  values = b * height * w * factors[1] * k
  # Rows around a block are read besides it; of pixels, the tiles that hold them.
  share = {4: 1 / rows, 3: _SUBLANES / (rows * factors[0])}
  read = sum(y.size * y.dtype.itemsize * (1 if n is None else share[y.ndim]) for y, n in arrays)
  moved = int(read) + sum(math.prod(y.shape) * y.dtype.itemsize for y in outs)
  return pl.pallas_call(
    functools.partial(kernel, factors, columns[0]),
    grid=(b, h // rows),
    in_specs=[spec(*array) for array in arrays],
    out_specs=[spec(y) for y in outs],
    out_shape=outs,
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    cost_estimate=pl.CostEstimate(flops=12 * values, transcendentals=values, bytes_accessed=moved),
    interpret=interpret,
  )(*(y for y, _ in arrays))


def _forward_kernel(factors, w, x, above, below, labels, log_normaliser, true_logit, *scratch):
  by_columns = tuple(_phase(q, factors[1]) for q in range(factors[1]))
  own_labels, own_normaliser, own_true = scratch
  _split_columns(labels[0], own_labels)

  def row(i, _):
    r, p = lax.div(i, factors[0]), lax.rem(i, factors[0])
    here, neighbours = _with_neighbours(r, x, above, below)
    number = lax.broadcasted_iota(jnp.int32, here.shape, 0)
    y = _between(here, neighbours, _phase(p, factors[0]))
    shifted = (_shift(y, 1, w), _shift(y, -1, w))
    at = pl.ds(i, 1)
    for q, column in enumerate(by_columns):
      z = _between(y, shifted, column)
      largest = z.max(0, keepdims=True)
      total = jnp.exp(z - largest).sum(0, keepdims=True)
      own_normaliser[q, at, :] = jnp.log(total) + largest
      target = own_labels[q, at, :] == number
      own_true[q, at, :] = jnp.where(target, z, 0.0).sum(0, keepdims=True)
    return 0

  lax.fori_loop(0, x.shape[1] * factors[0], row, 0)
  width = labels.shape[2]
  log_normaliser[0], true_logit[0] = _join_columns(own_normaliser, width), _join_columns(own_true, width)


def _backward_kernel(factors, w, x, above, below, *refs):
  by_columns = tuple(_phase(q, factors[1]) for q in range(factors[1]))
  pixels, around, (dx, *own, total) = refs[:4], refs[4:12], refs[12:]
  block, rows, factor = pl.program_id(1), x.shape[1], factors[0]
  total[...] = jnp.zeros_like(total)
  for y, split in zip(pixels, own, strict=True):
    _split_columns(y[0], split)

  def of_phase(y, at):
    """The gradient of an upsampled row of the small width, whose pixels are row `at` of `own`."""
    number = lax.broadcasted_iota(jnp.int32, y.shape, 0)
    shifted = (_shift(y, 1, w), _shift(y, -1, w))
    sums = [jnp.zeros_like(y), jnp.zeros_like(y), jnp.zeros_like(y)]  # for before, itself, after
    for q, column in enumerate(by_columns):
      label, log_normaliser, of_normaliser, of_true = (split[q, pl.ds(at, 1), :] for split in own)
      dz = jnp.exp(_between(y, shifted, column) - log_normaliser) * of_normaliser
      dz = dz + jnp.where(label == number, of_true, 0.0)
      side, weight, before = column
      sums[1] = sums[1] + dz * weight
      if side:
        sums[0 if before else 2] = sums[0 if before else 2] + dz * side
    return sums[1] + _shift_transposed(sums[0], 1, w) + _shift_transposed(sums[2], -1, w)

  def row(i, _):
    r, phase = lax.div(i, factor), _phase(lax.rem(i, factor), factor)
    side, weight, before = phase
    dy = of_phase(_between(*_with_neighbours(r, x, above, below), phase), i)
    total[r + 1] = total[r + 1] + dy * weight
    beside = r + jnp.where(before, 0, 2)
    total[beside] = total[beside] + dy * side
    return 0

  lax.fori_loop(0, rows * factor, row, 0)

  def from_outside(row, neighbour, which):
    """Adds what the pixels of a row around the block have for its first or last row."""
    for y, split in zip(around[which::2], own, strict=True):  # the block's own are done with
      for q, columns in enumerate(_columns(y[0], factors[1])):
        split[q, pl.ds(0, _SUBLANES), :] = columns
    # Of the row above the later phases reach the block, of the one below the earlier ones.
    first, tile = (0, 0) if which else (factor - factor // 2, _SUBLANES - factor)
    edge = rows if which else 1

    def phase(i, _):
      side, weight, _ = _phase(first + i, factor)
      dy = of_phase(row * weight + neighbour * side, tile + first + i)
      total[edge] = total[edge] + dy * side
      return 0

    lax.fori_loop(0, factor // 2, phase, 0)

  # Beyond the image the block's own edge is repeated, which gets what is there.
  first, last = x[0, 0].astype(jnp.float32), x[0, rows - 1].astype(jnp.float32)

  @pl.when(block > 0)
  def _():
    from_outside(above[0, 0].astype(jnp.float32), first, 0)

  @pl.when(block == 0)
  def _():
    total[1] = total[1] + total[0]

  @pl.when(block < pl.num_programs(1) - 1)
  def _():
    from_outside(below[0, 0].astype(jnp.float32), last, 1)

  @pl.when(block == pl.num_programs(1) - 1)
  def _():
    total[rows] = total[rows] + total[rows + 1]

  dx[0] = total[1 : rows + 1].astype(dx.dtype)


def _with_neighbours(r, x, above, below):
  """Row r, and the rows before and after it; float32."""
  rows = x.shape[1]
  before = jnp.where(r == 0, above[0, 0], x[0, jnp.maximum(r - 1, 0)])
  after = jnp.where(r == rows - 1, below[0, 0], x[0, jnp.minimum(r + 1, rows - 1)])
  return x[0, r].astype(jnp.float32), (before.astype(jnp.float32), after.astype(jnp.float32))


def _phase(p: int | Array, factor: int) -> Phase:
  offset = (p + 0.5) / factor - 0.5
  return abs(offset), 1 - abs(offset), offset < 0


def _between(here, neighbours, phase: Phase):
  side, own, before = phase
  if isinstance(before, bool):
    return here * own + neighbours[0 if before else 1] * side if side else here
  return here * own + jnp.where(before, *neighbours) * side


def _shift(y, by: int, w: int):
  """Each of `w` columns' neighbour: before it for `by` 1, after it for −1; the edge repeats."""
  lane = lax.broadcasted_iota(jnp.int32, y.shape, 1)
  return jnp.where(lane == (0 if by == 1 else w - 1), y, pltpu.roll(y, by % y.shape[1], 1))


def _shift_transposed(y, by: int, w: int):
  lane = lax.broadcasted_iota(jnp.int32, y.shape, 1)
  first, last = (0, w - 1) if by == 1 else (w - 1, 0)
  back = pltpu.roll(y, -by % y.shape[1], 1)
  return jnp.where(lane == last, 0.0, back) + jnp.where(lane == first, y, 0.0)


def _rows(h: int, w: int, k: int, factors: tuple[int, int]) -> int:
  """Rows of a block: the most that divide h, fill the tiles of the pixels, and hold a block's bytes; or 0."""
  if _SUBLANES % factors[0]:
    return 0
  # Of the small map, and of one of pixels, of which the derivative holds as many.
  a_row = 4 * w * max(-(-k // _SUBLANES) * _SUBLANES, factors[0] * factors[1])
  most = min(_BLOCK_BYTES // a_row, h)
  return max((n for n in range(1, most + 1) if h % n == 0 and n * factors[0] % _SUBLANES == 0), default=0)


def _columns(y, factor: int) -> list[Array]:
  """Every `factor`-th column of (rows, columns): from the first on, from the second on, ..."""
  lane = lax.broadcasted_iota(jnp.int32, (y.shape[0], _LANES), 1)
  pieces = [y[:, i : i + _LANES] for i in range(0, y.shape[1], _LANES)]
  found = []
  for q in range(factor):
    parts = []
    for first in range(0, len(pieces), factor):
      part = None
      for j, piece in enumerate(pieces[first : first + factor]):
        # Lane l is column l · factor + q of the `factor` pieces.
        column = lane * factor + q
        taken = jnp.take_along_axis(piece, lax.rem(column, _LANES), axis=1)
        part = taken if part is None else jnp.where(lax.div(column, _LANES) == j, taken, part)
      parts.append(part)
    found.append(jnp.concatenate(parts, axis=1))
  return found


def _split_columns(y, out) -> None:
  for q, columns in enumerate(_columns(y, out.shape[0])):
    out[q] = columns


def _join_columns(phases, width: int) -> Array:
  """The inverse of `_split_columns`, so many columns of it."""
  factor, rows, _ = phases.shape
  lane = lax.broadcasted_iota(jnp.int32, (rows, _LANES), 1)
  pieces = []
  for first in range(0, width, _LANES):
    start = first // factor
    segment = start // _LANES * _LANES
    piece = None
    for q in range(factor):
      columns = phases[q, :, segment : segment + _LANES]
      taken = jnp.take_along_axis(columns, start - segment + lax.div(lane, factor), axis=1)
      piece = taken if piece is None else jnp.where(lax.rem(lane, factor) == q, taken, piece)
    pieces.append(piece)
  return jnp.concatenate(pieces, axis=1)
