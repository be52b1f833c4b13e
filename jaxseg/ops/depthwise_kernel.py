"""Depthwise convolution as a kernel for GPUs (Pallas, lowered by Triton): value and both gradients.

A program is a tile of pixels of some channels. It reads the map once for each tap, shifted; the first reading
brings a tile and its surroundings into the first-level cache, and the others find it there. Sums are
float32. The gradient of the input is the same convolution with the kernel turned round; that of the kernel
is a sum over the map for each of some taps, which several programs share and XLA adds up.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

Pair = tuple[int, int]

_CHANNELS = 64  # of a program, at most
_VALUES = 2048  # of a program's tile: 16 in each of its 128 threads
_SUMMED_VALUES = 1024  # the same where a sum is held for each tap
_TAPS = 9  # that one program sums, at most: 8 registers of a thread each
_PROGRAMS = 1056  # that share the sums: 8 for each multiprocessor of an H100


def fits(shape: Sequence[int], dtype: Any, strides: Pair) -> bool:
  """Whether the kernels take a map b h w c: whole blocks of channels, no stride, offsets of 32 bits."""
  if not all(isinstance(size, int) for size in shape):
    return False  # of a symbolic size nothing can be asked
  floating = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize <= 4
  return floating and strides == (1, 1) and shape[-1] % 16 == 0 and math.prod(shape) < 2**31


@functools.partial(jax.jit, static_argnames=("padding", "dilation", "interpret"))
def value(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw 1 c"],
  padding: tuple[Pair, Pair],
  dilation: Pair,
  *,
  interpret: bool = False,
) -> Float[Array, "b ho wo c"]:
  """The convolution; `padding` as `depthwise.Window` has it. `interpret` runs anywhere, slowly."""
  (b, h, w, c), (kh, kw) = x.shape, kernel.shape[:2]
  ho, wo = _out(h, kh, padding[0], dilation[0]), _out(w, kw, padding[1], dilation[1])
  channels = _block(c)
  tile = _tile((kh, kw), (ho, wo), _VALUES // channels)

  def body(x_ref, kernel_ref, y_ref):
    image, row, column = _place(pl.program_id(0), tile, (ho, wo))
    lanes = _lanes(pl.program_id(1), channels)
    total = jnp.zeros((tile[0] * tile[1], channels), jnp.float32)
    for i in range(kh):
      for j in range(kw):
        shifted = row + i * dilation[0] - padding[0][0], column + j * dilation[1] - padding[1][0]
        weights = kernel_ref[i * kw + j, lanes].astype(jnp.float32)
        total += _read(x_ref, image, *shifted, lanes) * weights
    inside = jnp.broadcast_to((row < ho) & (column < wo), total.shape)
    at = y_ref.at[_index(total.shape, image, row, column, lanes)]
    plgpu.store(at, total.astype(y_ref.dtype), mask=inside)

  return pl.pallas_call(
    body,
    grid=(_tiles((b, ho, wo), tile), c // channels),
    out_shape=jax.ShapeDtypeStruct((b, ho, wo, c), x.dtype),
    compiler_params=plgpu.CompilerParams(num_warps=4),
    interpret=interpret,
    name="depthwise",
  )(x, kernel.reshape(kh * kw, c))


@functools.partial(jax.jit, static_argnames=("padding", "dilation", "interpret"))
def gradients(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw 1 c"],
  dy: Float[Array, "b ho wo c"],
  padding: tuple[Pair, Pair],
  dilation: Pair,
  *,
  interpret: bool = False,
) -> tuple[Float[Array, "b h w c"], Float[Array, "kh kw 1 c"]]:
  """Of the input and of the kernel, for the gradient `dy` of the convolution."""
  sides = []
  for axis in (0, 1):
    extent = (kernel.shape[axis] - 1) * dilation[axis]
    low = extent - padding[axis][0]
    sides.append((low, x.shape[1 + axis] + extent - dy.shape[1 + axis] - low))
  dx = value(dy, kernel[::-1, ::-1], tuple(sides), dilation, interpret=interpret)
  sums = _kernel_sums(x, dy, kernel.shape[:2], padding, dilation, interpret)
  return dx, sums.reshape(kernel.shape).astype(kernel.dtype)


def _kernel_sums(x, dy, size: Pair, padding, dilation, interpret: bool):
  """Σ of x, shifted by each tap, times dy: (taps, channels), float32."""
  (b, ho, wo, c), (kh, kw) = dy.shape, size
  groups = -(-kh * kw // _TAPS)
  taps = -(-kh * kw // groups)
  channels = _block(c)
  tile = _tile(size, (ho, wo), _SUMMED_VALUES // channels)
  tiles = _tiles((b, ho, wo), tile)
  each = -(-tiles // max(_PROGRAMS // (groups * (c // channels)), 1))  # tiles of a program
  parts = -(-tiles // each)

  def body(x_ref, dy_ref, sums_ref):
    group, part = pl.program_id(0), pl.program_id(2)
    lanes = _lanes(pl.program_id(1), channels)

    def add(n, sums):
      image, row, column = _place(part * each + n, tile, (ho, wo))
      # Past the last image there is nothing: a part may have fewer tiles than the others.
      factor = _read(dy_ref, image, row, column, lanes)
      found = []
      for t, total in enumerate(sums):
        tap = group * taps + t
        shifted_row = row + (tap // kw) * dilation[0] - padding[0][0]
        shifted_column = column + (tap % kw) * dilation[1] - padding[1][0]
        found.append(total + factor * _read(x_ref, image, shifted_row, shifted_column, lanes))
      return tuple(found)

    zeros = jnp.zeros((tile[0] * tile[1], channels), jnp.float32)
    sums = lax.fori_loop(0, each, add, (zeros,) * taps)
    for t, total in enumerate(sums):
      at = sums_ref.at[_index((1, channels), part, group * taps + t, lanes)]
      plgpu.store(at, total.sum(0, keepdims=True))

  sums = pl.pallas_call(
    body,
    grid=(groups, c // channels, parts),
    out_shape=jax.ShapeDtypeStruct((parts, groups * taps, c), jnp.float32),
    compiler_params=plgpu.CompilerParams(num_warps=4),
    interpret=interpret,
    name="depthwise_kernel_gradient",
  )(x, dy)
  return sums.sum(0)[: kh * kw]


def _out(size: int, taps: int, padding: Pair, dilation: int) -> int:
  return size + sum(padding) - (taps - 1) * dilation


def _block(c: int) -> int:
  """Channels of a program: a power of two that divides all."""
  return min(c & -c, _CHANNELS)


def _tile(kernel_size: Pair, size: Pair, pixels: int) -> Pair:
  """Rows and columns, powers of two, of so many pixels: long where the kernel is, so that taps share."""
  rows, columns = (pl.next_power_of_2(n) for n in size)
  if kernel_size[0] == 1:
    height = 2
  elif kernel_size[1] == 1:
    height = pixels // 2
  else:
    height = 1 << (pixels.bit_length() // 2)
  height = min(height, rows, pixels)
  width = min(pixels // height, columns)
  return min(pixels // width, rows), width


def _tiles(shape: Sequence[int], tile: Pair) -> int:
  b, h, w = shape
  return b * -(-h // tile[0]) * -(-w // tile[1])


def _place(n, tile: Pair, size: Pair):
  """(image, rows, columns) of the pixels of tile n: a number and two columns (pixels, 1)."""
  down, across = (-(-s // t) for s, t in zip(size, tile, strict=True))
  pixel = jnp.arange(tile[0] * tile[1])[:, None]
  row = (n // across) % down * tile[0] + pixel // tile[1]
  return n // (down * across), row, n % across * tile[1] + pixel % tile[1]


def _lanes(block, channels: int):
  return block * channels + jnp.arange(channels)[None]


def _read(ref, image, row, column, lanes):
  """Pixels × channels in float32; zeros where the map has nothing."""
  b, h, w, _ = ref.shape
  shape = (row.shape[0], lanes.shape[1])
  inside = (row >= 0) & (row < h) & (column >= 0) & (column < w) & (image < b)
  at = ref.at[_index(shape, image, row, column, lanes)]
  return plgpu.load(at, mask=jnp.broadcast_to(inside, shape), other=0.0).astype(jnp.float32)


def _index(shape: Pair, *axes):
  return tuple(jnp.broadcast_to(axis, shape) for axis in axes)
