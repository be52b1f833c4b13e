"""Depthwise convolution: one filter a channel.

XLA:CPU runs `lax.conv_general_dilated` with one channel a group tens of times slower than
the same sum written tap by tap, and the automatic derivative of that sum is a pad and an add over the whole
image for each tap. On TPU the taps keep the vector unit busy 5 to 15 times as long as XLA's own
convolution; a strip can also be a product with a banded matrix, on the matrix unit.
On GPUs a kernel of our own (`ops.depthwise_kernel`) keeps the taps' sum in registers.
So there are four forms, each of the value and of both gradients, and a table of choices at the end.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Float

from jaxseg.ops import depthwise_kernel
from jaxseg.ops.definition import (
  PLATFORMS,
  by_platform,
  defined_by,
  formed,
  interpreted_on_cpu,
  takes_gpu_kernels,
)
from jaxseg.types import Dim

Pair = tuple[int, int]
Form = Literal["lax", "taps", "banded", "kernel"]


class Window(NamedTuple):
  """What a convolution needs beside its arrays; hashable.

  Attributes:
    strides: of rows and columns.
    padding: zeros (before, after) the rows and the columns; negative crops.
    dilation: distance of the taps.
  """

  strides: Pair
  padding: tuple[Pair, Pair]
  dilation: Pair


def depthwise_conv_reference(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw 1 c"],
  *,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  dilation: Pair = (1, 1),
  on_devices: Callable[..., Callable | None] | None = None,
) -> Float[Array, "b ho wo c"]:
  """The definition: a grouped convolution with one channel a group."""
  del on_devices
  return _lax(x, kernel, Window(strides, padding, dilation))


@defined_by(depthwise_conv_reference)
def depthwise_conv(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw 1 c"],
  *,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  dilation: Pair = (1, 1),
  on_devices: Callable[..., Callable | None] | None = None,
) -> Float[Array, "b ho wo c"]:
  """Equal to `depthwise_conv_reference`, in the form that `choose_form` gives for the platform.

  It has a reverse derivative of its own; for `jax.jvp` see `ops.definition.plain_definitions`.

  Args:
    x: image-like input.
    kernel: one filter a channel, in Linen's layout.
    strides: rows, columns.
    padding: zeros added (before, after) the rows and the columns; negative crops.
    dilation: distance of the taps.
    on_devices: makes of GPUs' kernel, (x, kernel) → y, one that runs on each device of a mesh for its images,
      or None where there must be none; of its arguments the last one, `same=1`, is the same for all.
  """
  window = Window(tuple(strides), tuple(map(tuple, padding)), tuple(dilation))
  plain = partial(_run, window=window)
  kernels = on_devices is not None and _is_sharded() and takes_gpu_kernels("cuda")
  if not kernels or not depthwise_kernel.fits(x.shape, x.dtype, window.strides):
    return plain(x, kernel)
  on_each = on_devices(partial(_run, window=window, form="kernel"), same=1)
  choice = dict.fromkeys(PLATFORMS, "plain") | ({} if on_each is None else {"cuda": "kernel"})
  return by_platform(choice, {"plain": plain, "kernel": on_each})(x, kernel)


def depthwise_conv_as(
  form: Form, x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], window: Window
) -> Float[Array, "b ho wo c"]:
  """One form on any platform, with its own derivative."""
  return _run(x, kernel, window, form)


# --- lax: XLA's own grouped convolution ---


def _lax(x, kernel, window: Window):
  return lax.conv_general_dilated(
    x,
    kernel,
    window.strides,
    window.padding,
    rhs_dilation=window.dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _lax_gradients(x, kernel, dy, window: Window):
  return jax.vjp(partial(_lax, window=window), x, kernel)[1](dy)


# --- taps: a sum of shifted multiplies ---


def _taps(x, kernel, window: Window):
  """The sum is float32 and rounded once, whatever the dtype."""
  strides, padding, dilation = window
  kh, kw, _, _ = kernel.shape
  padded = _pad(x, padding)
  ho, wo = _out_size(padded.shape, (kh, kw), strides, dilation)
  wide = kernel.astype(jnp.float32)
  total = None
  for i in range(kh):
    for j in range(kw):
      term = _tap(padded, i, j, (ho, wo), strides, dilation).astype(jnp.float32) * wide[i, j, 0]
      total = term if total is None else total + term
  return total.astype(x.dtype)


def _taps_gradients(x, kernel, dy, window: Window):
  strides, padding, dilation = window
  kh, kw, _, c = kernel.shape
  extent = [(k - 1) * d for k, d in zip((kh, kw), dilation, strict=True)]
  # Input gradient: the stride becomes zeros between the gradients, the kernel is flipped,
  # and the padding is what makes the result as large as x.
  dilated = lax.pad(
    dy,
    jnp.zeros((), dy.dtype),
    [(0, 0, 0), (0, 0, strides[0] - 1), (0, 0, strides[1] - 1), (0, 0, 0)],
  )
  sides = []
  for size, (before, _), ext, grown in zip(x.shape[1:3], padding, extent, dilated.shape[1:3], strict=True):
    low = ext - before
    sides.append((low, size + ext - grown - low))
  dx = _taps(dilated, kernel[::-1, ::-1], Window((1, 1), tuple(sides), dilation))

  padded, wide = _pad(x, padding), dy.astype(jnp.float32)
  # XLA:CPU copies each shifted image before it reduces it. Adding up blocks of batch and rows first, by
  # plain additions that fuse with the shift, leaves it a small array: 2 to 8 times faster.
  images, rows = _block(dy.shape, kh * kw, whole_batch=_is_sharded())
  parts = [
    (slice(n, n + images), slice(r, r + rows))
    for n in range(0, dy.shape[0], images)
    for r in range(0, dy.shape[1], rows)
  ]
  sums = []
  for i in range(kh):
    for j in range(kw):
      tap = _tap(padded, i, j, dy.shape[1:3], strides, dilation).astype(jnp.float32)
      sums.append(sum(tap[part] * wide[part] for part in parts))
  dkernel = jnp.stack(sums).sum((1, 2, 3)).reshape(kh, kw, 1, c)
  return dx, dkernel.astype(kernel.dtype)


def _is_sharded() -> bool:
  """Whether arrays may lie on several devices: slices of a batch would then travel between them."""
  return any(size > 1 for size in jax.sharding.get_abstract_mesh().shape.values())


def _block(shape: Sequence[Dim], num_taps: int, *, whole_batch: bool) -> Pair:
  """Images and rows of a block: at most 8 MB for all taps, from at most 32 blocks."""
  b, h, w, c = shape
  images = b if whole_batch else next(n for n in range(1, b + 1) if b % n == 0 and b // n <= 32)
  parts, rows = b // images, h
  for divisor in range(1, h + 1):
    if h % divisor == 0 and parts * divisor <= 32:
      rows = h // divisor
      if 4 * num_taps * images * rows * w * c <= 8e6:
        break
  return images, rows


def _pad(x, padding):
  """Zeros around the image; negative amounts crop."""
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)])


def _out_size(
  padded_shape: Sequence[Dim], kernel_size: Pair, strides: Pair, dilation: Pair
) -> tuple[Dim, Dim]:
  return tuple(
    (size - (k - 1) * d - 1) // s + 1
    for size, k, s, d in zip(padded_shape[1:3], kernel_size, strides, dilation, strict=True)
  )


def _tap(padded, i, j, size, strides, dilation):
  """The padded image as tap (i, j) sees it: one value for each output pixel."""
  b, _, _, c = padded.shape
  (ho, wo), (sh, sw), (dh, dw) = size, strides, dilation
  start = (0, i * dh, j * dw, 0)
  limit = (b, i * dh + (ho - 1) * sh + 1, j * dw + (wo - 1) * sw + 1, c)
  return lax.slice(padded, start, limit, (1, sh, sw, 1))


# --- banded: a strip as a product with a band matrix for each channel ---


def _banded(x, kernel, window: Window):
  """A 1×n or n×1: y[v] = Σ_w x[w] T[w, v], T[w, v] = kernel[(w − v·stride + before) / dilation]."""
  rows, product = _strip(kernel)
  places = _places(x.shape[1 if rows else 2], kernel, window)
  band = jnp.einsum("wvn,nc->wvc", places.astype(kernel.dtype), kernel.reshape(-1, kernel.shape[-1]))
  return jnp.einsum(product, x, band, preferred_element_type=jnp.float32).astype(x.dtype)


def _banded_gradients(x, kernel, dy, window: Window):
  rows, product = _strip(kernel)
  inputs, output = product.split("->")
  image, band = inputs.split(",")
  places = _places(x.shape[1 if rows else 2], kernel, window)
  matrix = jnp.einsum("wvn,nc->wvc", places.astype(kernel.dtype), kernel.reshape(-1, kernel.shape[-1]))
  sums = dict(preferred_element_type=jnp.float32)
  dx = jnp.einsum(f"{output},{band}->{image}", dy, matrix, **sums).astype(x.dtype)
  # The correlation of every input with every output place, of which the diagonals are the taps.
  dmatrix = jnp.einsum(f"{image},{output}->{band}", x, dy, **sums)
  dkernel = jnp.einsum("wvn,wvc->nc", places.astype(jnp.float32), dmatrix, precision=lax.Precision.HIGHEST)
  return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


def _strip(kernel) -> tuple[bool, str]:
  """Whether the strip runs along the rows' axis, and the product with its band matrix."""
  rows = kernel.shape[1] == 1
  return rows, "bwhc,wvc->bvhc" if rows else "bhwc,wvc->bhvc"


def _places(size: int, kernel, window: Window) -> np.ndarray:
  """(size, outputs, taps): 1 where an output reads an input by a tap."""
  axis = 0 if kernel.shape[1] == 1 else 1
  n, stride, dilation = kernel.shape[axis], window.strides[axis], window.dilation[axis]
  before, after = window.padding[axis]
  outputs = (size + before + after - (n - 1) * dilation - 1) // stride + 1
  read = np.arange(outputs)[:, None] * stride + np.arange(n) * dilation - before
  return read[None] == np.arange(size)[:, None, None]


# --- kernel: for GPUs; interpreted where there is none ---


def _kernel(x, kernel, window: Window):
  run = partial(depthwise_kernel.value, padding=window.padding, dilation=window.dilation)
  return interpreted_on_cpu(run)(x, kernel)


def _kernel_gradients(x, kernel, dy, window: Window):
  run = partial(depthwise_kernel.gradients, padding=window.padding, dilation=window.dilation)
  return interpreted_on_cpu(run)(x, kernel, dy)


# --- the derivative, and the choice ---

FORMS: dict[Form, tuple[Callable, Callable]] = {
  "lax": (_lax, _lax_gradients),
  "taps": (_taps, _taps_gradients),
  "banded": (_banded, _banded_gradients),
  "kernel": (_kernel, _kernel_gradients),
}


def choose_form(
  platform: str, dtype: jnp.dtype, shape: Sequence[Dim], kernel_size: Pair, window: Window
) -> Form:
  """The table: which form for a platform ("cpu", "tpu", "cuda", "rocm"), a dtype and shapes.

  TPU: XLA's own, by the v5e compiler (benchmarks/results/tpu_v5e_aot.md). One long strip alone has fewer
  cycles as a product with a band matrix, but not the strips of an MSCA unit, each of which wants the map
  in another layout.

  CUDA: our kernel where it takes the shape. With gradients on an H100 XLA's own took 1.1 to
  1.2 times as long for 5×5, 7 to 12 times for strips, 38 times for 3×3 with rate 4, and no other form was
  quicker than the kernel by more than 1 % (benchmarks/results/h100.md).
  """
  del kernel_size
  if platform == "cpu":
    return "taps"
  kernel = takes_gpu_kernels(platform) and depthwise_kernel.fits(shape, dtype, window.strides)
  # The compiler cannot divide a kernel among several devices: `depthwise_conv` does, but not inside of a
  # `shard_map`, which asks of what a kernel gives how it differs by device.
  alone = not _is_sharded() and AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types
  return "kernel" if kernel and alone else "lax"


_run = formed(
  FORMS,
  lambda platform, x, kernel, window: choose_form(platform, x.dtype, x.shape, kernel.shape[:2], window),
)
