"""Atrous 3×3 convolution that keeps the size.

At a large rate most taps of a small map read padding: at rate 36 on a 64×64 map four
ninths of them do for every pixel on average. XLA multiplies those zeros; a matrix
product over each tap's valid window does not, and its derivative is products as well.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.definition import defined_by, formed

Form = Literal["lax", "taps", "lax_products"]


class Window(NamedTuple):
  """Rate; whether `rate` rows of neighbours lie above and below, with no result of their own."""

  rate: int
  has_halo: bool


def atrous_conv_reference(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"], *, rate: int, has_halo: bool = False
) -> Float[Array, "b _ w k"]:
  """The definition: a dilated convolution, zeros around the map (but not where rows of neighbours are)."""
  return _lax(x, kernel, Window(rate, has_halo))


@defined_by(atrous_conv_reference)
def atrous_conv(
  x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"], *, rate: int, has_halo: bool = False
) -> Float[Array, "b _ w k"]:
  """Equal to `atrous_conv_reference`, in the form that `choose_form` gives for the platform.

  Args:
    x: the map.
    kernel: in Linen's layout.
    rate: distance of the taps.
    has_halo: `x` has `rate` more rows above and below, which are read and have no result of their own.
  """
  return _run(x, kernel, Window(rate, has_halo))


def atrous_conv_as(
  form: Form, x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c k"], window: Window
) -> Float[Array, "b _ w k"]:
  """One form on any platform, with its own derivative."""
  return _run(x, kernel, window, form)


def _lax(x, kernel, window: Window):
  rate = window.rate
  return lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    ((0, 0) if window.has_halo else (rate, rate), (rate, rate)),
    rhs_dilation=(rate, rate),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _lax_gradients(x, kernel, dy, window: Window):
  return jax.vjp(partial(_lax, window=window), x, kernel)[1](dy)


def _taps(x, kernel, window: Window):
  """The centre tap everywhere, each other one on its window; the sum is float32 and rounded once."""
  total = None
  for i, j, source, target, pads in _windows(x.shape, window):
    del target
    part = jnp.matmul(x[source], kernel[i, j], preferred_element_type=jnp.float32)
    total = part if total is None else total + _padded(part, pads)
  return total.astype(x.dtype)


def _taps_gradients(x, kernel, dy, window: Window):
  dx = jnp.zeros(x.shape, jnp.float32)
  for i, j, source, target, _ in _windows(x.shape, window):
    part = jnp.einsum("bhwk,ck->bhwc", dy[target], kernel[i, j], preferred_element_type=jnp.float32)
    rows, columns = source[1:]
    pad_rows = (rows.start, x.shape[1] - rows.stop, 0)
    pad_columns = (columns.start, x.shape[2] - columns.stop, 0)
    dx = dx + _padded(part, (pad_rows, pad_columns))
  return dx.astype(x.dtype), _kernel_gradient(x, kernel, dy, window)


def _kernel_gradient(x, kernel, dy, window: Window):
  """A product for each tap."""
  found = {}
  for i, j, source, target, _ in _windows(x.shape, window):
    product = jnp.einsum("bhwc,bhwk->ck", x[source], dy[target], preferred_element_type=jnp.float32)
    found[i, j] = product
  zero = jnp.zeros(kernel.shape[2:], jnp.float32)
  stacked = jnp.stack([found.get((i, j), zero) for i in range(3) for j in range(3)])
  return stacked.reshape(kernel.shape).astype(kernel.dtype)


def _lax_products_gradients(x, kernel, dy, window: Window):
  """The input's by XLA's convolution; the kernel's not, which on GPUs has a window as large as the map."""
  (dx,) = jax.vjp(lambda x: _lax(x, kernel, window), x)[1](dy)
  return dx, _kernel_gradient(x, kernel, dy, window)


def _padded(part, pads):
  if all(pad == (0, 0, 0) for pad in pads):
    return part
  return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _windows(shape, window: Window) -> Iterator[tuple]:
  """(row tap, column tap, what it reads of x, what it adds to of y, y's padding), the centre first."""
  rate, (h, w) = window.rate, _size(shape, window)
  if window.has_halo:
    rows = [(i, slice(i * rate, i * rate + h), slice(0, h)) for i in (1, 0, 2)]
  else:
    rows = list(_axis(h, rate))
  for i, read_rows, rows_written in rows:
    for j, read_columns, columns_written in _axis(w, rate):
      pads = (_pad_of(rows_written, h), _pad_of(columns_written, w))
      every = slice(None)
      yield i, j, (every, read_rows, read_columns), (every, rows_written, columns_written), pads


def _size(shape, window: Window) -> tuple[int, int]:
  """Rows and columns of the result."""
  return shape[1] - 2 * window.rate * window.has_halo, shape[2]


def _pad_of(written: slice, size: int) -> tuple[int, int, int]:
  return written.start, size - written.stop, 0


def _axis(n: int, rate: int) -> Iterator[tuple[int, slice, slice]]:
  """(tap, what it reads, what it writes) on an axis of n pixels, of taps that read anything."""
  yield 1, slice(0, n), slice(0, n)
  if rate < n:
    yield 0, slice(0, n - rate), slice(rate, n)
    yield 2, slice(rate, n), slice(0, n - rate)


# --- the derivative, and the choice ---

FORMS: dict[Form, tuple[Callable, Callable]] = {
  "lax": (_lax, _lax_gradients),
  "taps": (_taps, _taps_gradients),
  "lax_products": (_lax, _lax_products_gradients),
}


# Below this share of useful taps the products win even against the convolution's better locality.
_USEFUL_SHARE = 0.7
# Kernels of this size leave a CPU's caches, where XLA:CPU's dilated convolution falls behind in any case.
_LARGE_KERNEL = 9 * 2048 * 512


def choose_form(
  platform: str, dtype: jnp.dtype, size: tuple[int, int], kernel_shape: tuple[int, ...], rate: int
) -> Form:
  """The table: which form for a platform, a dtype, a map of `size` (a device's own rows), kernel and rate.

  The share of taps that read the map decides; measured on a CPU (2048→512 at 64², rate 36: 0.37 s against
  1.54 s) and on a GPU (benchmarks/results/h100.md).
  """
  del dtype
  if rate == 1:
    return "lax"
  share = _share(size[0], rate) * _share(size[1], rate)
  large = platform == "cpu" and kernel_shape[2] * kernel_shape[3] * 9 >= _LARGE_KERNEL
  if share < _USEFUL_SHARE or (large and share < 0.9):
    return "taps"
  return "lax_products" if platform == "cuda" else "lax"


def _share(n: int, rate: int) -> float:
  """Part of the taps of an axis of n pixels that do not read padding."""
  return (n + 2 * max(n - rate, 0)) / (3 * n)


_run = formed(
  FORMS,
  lambda platform, x, kernel, window: choose_form(
    platform, x.dtype, _size(x.shape, window), kernel.shape, window.rate
  ),
)
