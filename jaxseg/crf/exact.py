"""Gaussian filtering that evaluates every pair of pixels, never holding the N×N matrix.

With colour it is attention with a Gaussian kernel: tiles of the matrix are made,
used and dropped, forwards and backwards. Of position alone the Gaussian is a product
of one along y and one along x, so that two small dense products sum the same pairs.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.crf.inputs import Kernel, features, pixel_grid

# A tile of the matrix is ROWS×COLUMNS: 4 MB, near the caches of a CPU and far below any accelerator's memory.
ROWS, COLUMNS = 512, 2048

# bfloat16 products, the default on TPU, would cost more than the 1e-3 that `exact` promises.
_dot = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def exact_filter(
  image: Float[Array, "h w 3"], kernel: Kernel
) -> Callable[[Float[Array, "n k"]], Float[Array, "n k"]]:
  """The function v → K v for one kernel, not normalised, self term (1 on the diagonal) included."""
  height, width, _ = image.shape
  if kernel.srgb is not None:
    place = pixel_grid(height, width, image.dtype)
    colour = image.reshape(height * width, 3)
    return partial(gaussian_matmul, features(place, colour, kernel.sxy, kernel.srgb))

  def axis(length, sigma):
    place = jnp.arange(length, dtype=image.dtype) / sigma
    return jnp.exp(-0.5 * jnp.square(place[:, None] - place))

  along_x, along_y = axis(width, kernel.sxy[0]), axis(height, kernel.sxy[1])

  def separable(values):
    grid = values.reshape(height, width, -1)
    grid = _dot("xw,ywk->yxk", along_x, grid)
    return _dot("yh,hxk->yxk", along_y, grid).reshape(values.shape)

  return separable


@jax.custom_vjp
def gaussian_matmul(place: Float[Array, "n d"], values: Float[Array, "n k"]) -> Float[Array, "n k"]:
  """K v with K_ij = exp(−‖x_i − x_j‖² / 2), in O(tile) memory; the derivative costs as little memory.

  Args:
    place: x, in standard deviations.
    values: v.
  """
  return _stream(lambda tile, rows, columns: _dot("rc,ck->rk", tile, columns), place, (), (values,), values)


def _forward(place, values):
  return gaussian_matmul(place, values), (place, values)


def _backward(residuals, g):
  place, values = residuals

  # dL/dx_i = Σ_j K_ij (g_i·v_j + v_i·g_j) (x_j − x_i)
  def pull(tile, rows, columns):
    x, v, gr = rows
    y, w, gc = columns
    pairs = tile * (_dot("rk,ck->rc", gr, w) + _dot("rk,ck->rc", v, gc))
    return _dot("rc,cd->rd", pairs, y) - jnp.sum(pairs, axis=1, keepdims=True) * x

  toward = _stream(pull, place, (place, values, g), (place, values, g), place)
  return toward, gaussian_matmul(place, g)


gaussian_matmul.defvjp(_forward, _backward)


def _stream(combine, place, rows, columns, like):
  """Sums combine(tile of K, its rows, its columns) over the column tiles, one row tile after the other."""
  n = place.shape[0]
  columns_per_tile = min(COLUMNS, n)
  rows_per_tile = min(ROWS, n)

  # Padding is with zeros; a padded pixel adds nothing, because its values are zero.
  def tiles(array, size):
    padded = jnp.pad(array, ((0, -n % size), (0, 0)))
    return padded.reshape(-1, size, array.shape[1])

  column_tiles = (tiles(place, columns_per_tile), *(tiles(c, columns_per_tile) for c in columns))
  row_tiles = (tiles(place, rows_per_tile), *(tiles(r, rows_per_tile) for r in rows))

  def one_row(row):
    # −‖x − y‖²/2 as one product, a fifth of the time of summed squares on XLA:CPU. It cancels
    # where both are far from the origin, so the origin is the middle of the row tile.
    middle = jnp.mean(row[0], axis=0)
    left = _augmented(row[0] - middle, 0)

    def add(total, column):
      exponent = _dot("rd,cd->rc", left, _augmented(column[0] - middle, 1))
      return total + combine(jnp.exp(exponent), row[1:], _single(column[1:])), None

    start = jnp.zeros((rows_per_tile, like.shape[1]), like.dtype)
    return lax.scan(add, start, column_tiles)[0]

  return lax.map(one_row, row_tiles).reshape(-1, like.shape[1])[:n]


def _augmented(place, side):
  """Two more columns, −‖x‖²/2 and 1 (on side 1: 1 and −‖x‖²/2), so that left·right is −‖x − y‖²/2."""
  half = -0.5 * jnp.sum(jnp.square(place), axis=1, keepdims=True)
  more = (half, jnp.ones_like(half))
  return jnp.concatenate([place, *(more[::-1] if side else more)], axis=1)


def _single(parts):
  return parts[0] if len(parts) == 1 else parts
