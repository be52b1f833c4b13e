"""`upsampled_cross_entropy`'s numbers of a pixel as a kernel for GPUs (Pallas, lowered by Triton).

The upsampled logits live in registers only. Four neighbours of the small map enclose `factor`² pixels, whose
logits are weighted sums of theirs. Forward, a program has a row of such squares and goes over the classes
twice, for the largest and for the sum. Backward, a program has some pixels of the small map and some classes:
it makes all pixels around them again, so that each gradient is summed in one place and in the same order
every time. Neighbouring programs make those between them twice, which is why one has a few rows.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

_CLASSES = 64  # that a program has at a time, at most
_VALUES = 1024  # classes × columns of a program: 8 in each of its 128 threads
_ROWS = 4  # of the small map that a program has, backward
_MOST_CLASSES = 512
_NOTHING = -1e30  # the logit of the classes that a block is filled up with
# Exponentials are of base 2, one instruction instead of ten.
_LOG2_E = math.log2(math.e)


def fits(logits_shape: Sequence[int], size: tuple[int, int], *, align_corners: bool) -> bool:
  """Whether the kernel takes logits b h w k to `size`: factors of 2, 4 or 8, at most 512 classes."""
  b, h, w, k = logits_shape
  if align_corners or not all(isinstance(n, int) for n in (b, h, w, k, *size)):
    return False  # of a symbolic size nothing can be asked
  whole = all(n in (2 * m, 4 * m, 8 * m) for n, m in zip(size, (h, w), strict=True))
  return whole and k <= _MOST_CLASSES and b * max(math.prod(size), h * w * _filled(k)) < 2**31


def terms(logits: Float[Array, "b h w k"], labels: Int[Array, "b H W"], *, interpret: bool = False):
  """(log Σ exp of the upsampled logits, the label's logit or 0 where it is no class), float32 b H W."""
  return _terms(logits, labels, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _terms(logits, labels, interpret):
  return _forward(logits, labels, interpret)[0]


@functools.partial(jax.jit, static_argnums=2)
def _forward(logits, labels, interpret):
  (b, h, w, k), (_, height, width) = logits.shape, labels.shape
  rows, columns = height // h, width // w
  block, beside = _block(k), _columns(k, w + 1)
  filled = _fill(logits)

  def body(x_ref, logits_ref, labels_ref, normaliser_ref, true_ref):
    image, i = pl.program_id(0) // (h + 1), pl.program_id(0) % (h + 1)
    j = pl.program_id(1) * beside + jnp.arange(beside)[:, None]
    above, below = jnp.maximum(i - 1, 0), jnp.minimum(i, h - 1)
    left, right = jnp.clip(j - 1, 0, w - 1), jnp.clip(j, 0, w - 1)

    def row(p, _):
      pixel_row, share = i * rows - rows // 2 + p, (p + 0.5) / rows

      def upsampled(chunk: int):
        """The logits of one class block at each of the squares' columns, over log 2."""
        lanes = chunk * block + jnp.arange(block)[None]
        sides = [_LOG2_E * _between(x_ref, image, above, below, c, lanes, share) for c in (left, right)]
        return [sides[0] + (sides[1] - sides[0]) * _share(q, columns) for q in range(columns)]

      chunks = range(filled.shape[-1] // block)
      largest = functools.reduce(_each(jnp.maximum), map(upsampled, chunks))
      largest = [y.max(1, keepdims=True) for y in largest]
      exponentials = ([jnp.exp2(y - m) for y, m in zip(upsampled(c), largest, strict=True)] for c in chunks)
      totals = functools.reduce(_each(jnp.add), exponentials)
      for q, (m, total) in enumerate(zip(largest, totals, strict=True)):
        pixel_column = j * columns - columns // 2 + q
        inside = (pixel_row >= 0) & (pixel_row < height) & (pixel_column >= 0) & (pixel_column < width)
        pixel = _index(j.shape, image, pixel_row, pixel_column)
        label = plgpu.load(labels_ref.at[pixel], mask=inside, other=-1)
        known = inside & (label >= 0) & (label < k)
        # Not by their differences: that of two −∞ is none.
        top, bottom = (
          [_read(logits_ref, image, row, c, label, j.shape, known) for c in (left, right)]
          for row in (above, below)
        )
        sides = [x * (1 - share) + y * share for x, y in zip(top, bottom, strict=True)]
        true = sides[0] * (1 - _share(q, columns)) + sides[1] * _share(q, columns)
        normaliser = jnp.log(total.sum(1, keepdims=True)) + m / _LOG2_E
        plgpu.store(normaliser_ref.at[pixel], normaliser, mask=inside)
        plgpu.store(true_ref.at[pixel], jnp.where(known, true, 0.0), mask=inside)
      return 0

    lax.fori_loop(0, rows, row, 0)

  out = jax.ShapeDtypeStruct(labels.shape, jnp.float32)
  found = pl.pallas_call(
    body,
    grid=(b * (h + 1), pl.cdiv(w + 1, beside)),
    out_shape=(out, out),
    compiler_params=plgpu.CompilerParams(num_warps=4),
    interpret=interpret,
    name="upsampled_softmax",
  )(filled, logits, labels)
  return tuple(found), (logits, labels, found[0])


@functools.partial(jax.jit, static_argnums=0)
def _backward(interpret, kept, cotangents):
  logits, labels, log_normaliser = kept
  (b, h, w, k), (_, height, width) = logits.shape, labels.shape
  rows, columns = height // h, width // w
  block, beside = _block(k), _columns(k, w)
  blocks = pl.cdiv(h, _ROWS)

  def body(x_ref, labels_ref, normaliser_ref, of_normaliser_ref, of_true_ref, dx_ref):
    image, first = pl.program_id(0) // blocks, pl.program_id(0) % blocks * _ROWS
    j = pl.program_id(1) * beside + jnp.arange(beside)[:, None]
    lanes = pl.program_id(2) * block + jnp.arange(block)[None]
    shape = (beside, block)
    neighbours = [jnp.clip(j + n, 0, w - 1) for n in (-1, 0, 1)]
    alone = [(j == edge).astype(jnp.float32) for edge in (0, w - 1)]  # beyond it a pixel stands for both
    zeros = jnp.zeros(shape, jnp.float32)

    def squares(n, above_so_far):
      """Those between rows i − 1 and i: row i − 1 is done, row i has its first half."""
      i = first + n
      rows_around = jnp.maximum(i - 1, 0), jnp.minimum(i, h - 1)
      above, below = (
        [_LOG2_E * _read(x_ref, image, row, c, lanes, shape) for c in neighbours] for row in rows_around
      )
      at_top, at_bottom = (i == 0).astype(jnp.float32), (i >= h).astype(jnp.float32)

      def row(p, sums):
        share, pixel_row = (p + 0.5) / rows, i * rows - rows // 2 + p
        left, here, right = (x + (y - x) * share for x, y in zip(above, below, strict=True))
        total = zeros
        for q in range(2 * columns):
          after, of_right = q >= columns, _share(q % columns, columns)
          y = here + (right - here) * of_right if after else left + (here - left) * of_right
          own = 1 - of_right if after else of_right
          own += alone[after] * (1 - own)
          pixel_column = j * columns - columns // 2 + q
          inside = (pixel_row >= 0) & (pixel_row < height) & (pixel_column >= 0) & (pixel_column < width)
          pixel = _index(j.shape, image, pixel_row, pixel_column)
          # Of a pixel that is not there the exponential is 0, whatever the logits are.
          normaliser = plgpu.load(normaliser_ref.at[pixel], mask=inside, other=-_NOTHING)
          of_normaliser = plgpu.load(of_normaliser_ref.at[pixel], mask=inside, other=0.0)
          of_true = plgpu.load(of_true_ref.at[pixel], mask=inside, other=0.0)
          label = plgpu.load(labels_ref.at[pixel], mask=inside, other=-1)
          total += jnp.exp2(y - _LOG2_E * normaliser) * (of_normaliser * own)
          total += jnp.where(label == lanes, of_true * own, 0.0)
        of_above = (1 - share) + at_bottom * share
        of_below = share + at_top * (1 - share)
        return sums[0] + total * of_above, sums[1] + total * of_below

      done, begun = lax.fori_loop(0, rows, row, (above_so_far, zeros))
      at = dx_ref.at[_index(shape, image, i - 1, j, lanes)]
      plgpu.store(at, done.astype(dx_ref.dtype), mask=(n > 0) & (i <= h) & (j < w) & (lanes < k))
      return begun

    lax.fori_loop(0, _ROWS + 1, squares, zeros)

  dx = pl.pallas_call(
    body,
    grid=(b * blocks, pl.cdiv(w, beside), _filled(k) // block),
    out_shape=jax.ShapeDtypeStruct(logits.shape, logits.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4),
    interpret=interpret,
    name="upsampled_softmax_gradient",
  )(_fill(logits), labels, log_normaliser, *cotangents)
  return dx, None


_terms.defvjp(_forward, _backward)


def _block(k: int) -> int:
  """Classes of a program at a time: a power of two."""
  return min(max(pl.next_power_of_2(k), 16), _CLASSES)


def _filled(k: int) -> int:
  return -(-k // _block(k)) * _block(k)


def _fill(logits):
  """Logits of whole blocks of classes, for reads of 16 bytes without a mask, and finite instead of −∞."""
  more = _filled(logits.shape[-1]) - logits.shape[-1]
  nothing = max(_NOTHING, float(jnp.finfo(logits.dtype).min) / 4)
  return jnp.pad(jnp.maximum(logits, nothing), [(0, 0)] * 3 + [(0, more)], constant_values=nothing)


def _columns(k: int, w: int) -> int:
  """Columns of a program."""
  return min(_VALUES // _block(k), pl.next_power_of_2(w))


def _share(q: int, factor: int) -> float:
  """Weight of the right one of two neighbours for the q-th of the pixels between them."""
  return (q + 0.5) / factor


def _each(function):
  return lambda xs, ys: [function(x, y) for x, y in zip(xs, ys, strict=True)]


def _between(ref, image, above, below, column, lanes, share):
  """Of two rows, the logits between them, float32."""
  shape = jnp.broadcast_shapes(column.shape, lanes.shape)
  top, bottom = (_read(ref, image, row, column, lanes, shape) for row in (above, below))
  return top + (bottom - top) * share


def _read(ref, image, row, column, lanes, shape, mask=None):
  at = ref.at[_index(shape, image, row, column, lanes)]
  return plgpu.load(at, mask=mask, other=None if mask is None else 0.0).astype(jnp.float32)


def _index(shape, *axes):
  return tuple(jnp.broadcast_to(axis, shape) for axis in axes)
