"""Depthwise convolution as a sum of shifted products, with a derivative of its own.

XLA:CPU runs `lax.conv_general_dilated` with one channel a group tens of times
slower than the same sum written tap by tap; on TPU the tap form moves fewer bytes.
Its automatic derivative is bad, though: a pad and an add over the whole image for
each tap. Here the input gradient is the same shifted sum with the kernel turned
round, and the weight gradient one reduction for each tap (on a CPU, of an image
that plain additions have folded first).
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.kernels.definition import defined_by

Pair = tuple[int, int]


def depthwise_conv_reference(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw 1 c"],
  *,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  dilation: Pair = (1, 1),
) -> Float[Array, "b ho wo c"]:
  """The definition: a grouped convolution with one channel a group."""
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


@defined_by(depthwise_conv_reference)
def depthwise_conv(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw 1 c"],
  *,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  dilation: Pair = (1, 1),
) -> Float[Array, "b ho wo c"]:
  """Equal to `depthwise_conv_reference`, as shifted products.

  Args:
    x: image-like input.
    kernel: one filter a channel, in Linen's layout.
    strides: rows, columns.
    padding: zeros added (before, after) the rows and the columns; negative crops.
    dilation: distance of the taps.
  """
  return _shifted(x, kernel, tuple(strides), tuple(map(tuple, padding)), tuple(dilation))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted(x, kernel, strides, padding, dilation):
  kh, kw, _, _ = kernel.shape
  padded = _pad(x, padding)
  ho, wo = _out_size(padded.shape, (kh, kw), strides, dilation)
  total = None
  for i in range(kh):
    for j in range(kw):
      term = _tap(padded, i, j, (ho, wo), strides, dilation) * kernel[i, j, 0]
      total = term if total is None else total + term
  return total


def _shifted_fwd(x, kernel, strides, padding, dilation):
  return _shifted(x, kernel, strides, padding, dilation), (x, kernel)


def _shifted_bwd(strides, padding, dilation, residuals, dy):
  x, kernel = residuals
  kh, kw, _, _ = kernel.shape
  extent = [(k - 1) * d for k, d in zip((kh, kw), dilation, strict=True)]
  # Input gradient: the stride becomes zeros between the gradients, the kernel turns round,
  # and the padding is what makes the result as large as x.
  spread = lax.pad(
    dy,
    jnp.zeros((), dy.dtype),
    [(0, 0, 0), (0, 0, strides[0] - 1), (0, 0, strides[1] - 1), (0, 0, 0)],
  )
  sides = []
  for size, (before, _), ext, grown in zip(x.shape[1:3], padding, extent, spread.shape[1:3], strict=True):
    low = ext - before
    sides.append((low, size + ext - grown - low))
  dx = _shifted(spread, kernel[::-1, ::-1], (1, 1), tuple(sides), dilation)
  return dx, _weight_gradient(x, dy, kernel, strides, padding, dilation)


_shifted.defvjp(_shifted_fwd, _shifted_bwd)


def _weight_gradient(x, dy, kernel, strides, padding, dilation):
  """One reduction over batch, rows and columns for each tap, accumulated in float32."""
  kh, kw, _, c = kernel.shape
  padded = _pad(x, padding)

  def taps(padded, dy):
    for i in range(kh):
      for j in range(kw):
        yield _tap(padded, i, j, dy.shape[1:3], strides, dilation).astype(jnp.float32)

  def reduced(padded, dy):
    dy = dy.astype(jnp.float32)
    return jnp.stack([jnp.sum(tap * dy, axis=(0, 1, 2)) for tap in taps(padded, dy)])

  def folded(padded, dy):
    # XLA:CPU copies each shifted image before it reduces it. Folding batch and rows first, by plain
    # additions that fuse with the shift, leaves it a small array: 2 to 8 times faster.
    dy = dy.astype(jnp.float32)
    images, rows = _folds(dy.shape, kh * kw, whole_batch=_is_spread())
    parts = [
      (slice(n, n + images), slice(r, r + rows))
      for n in range(0, dy.shape[0], images)
      for r in range(0, dy.shape[1], rows)
    ]
    sums = [sum(tap[part] * dy[part] for part in parts) for tap in taps(padded, dy)]
    return jnp.stack(sums).sum((1, 2, 3))

  gradient = lax.platform_dependent(padded, dy, cpu=folded, default=reduced)
  return gradient.reshape(kh, kw, 1, c).astype(kernel.dtype)


def _is_spread() -> bool:
  """Whether arrays may lie on several devices: slices of a batch would then travel between them."""
  return any(size > 1 for size in jax.sharding.get_abstract_mesh().shape.values())


def _folds(shape: Sequence[int], num_taps: int, *, whole_batch: bool) -> tuple[int, int]:
  """Images and rows of what is left after folding: at most 8 MB for all taps, from at most 32 parts."""
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


def _out_size(padded_shape: Sequence[int], kernel_size: Pair, strides: Pair, dilation: Pair) -> Pair:
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
