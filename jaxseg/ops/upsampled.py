"""Functions of upsampled logits that never hold the upsampled map: rows are made a strip at a time.

150 classes of a batch of 16 at 512×512 are 2.5 GB of float32; what a loss or a label map wants of them is a
number or two a pixel. `map_strips` brings a strip of rows to full size, hands it to a function, keeps what
that returns, and in the derivative makes the strip again instead of keeping it. It has no forward mode
(`jax.jvp`): where one strip holds the map there is no strip, and JAX's own derivatives.

- Definition: `map_rows_reference`, which holds the map.
- Rows by a weighted sum of the few that a strip reads; columns on TPU by a matrix product, elsewhere in the
  form of `ops.resize`.
- A function may have kernels of its own for TPUs (`ops.softmax_kernel`) and GPUs (`ops.softmax_kernel_gpu`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops import resize as resize_ops
from jaxseg.ops.definition import PLATFORMS, by_platform, takes_gpu_kernels, takes_kernels
from jaxseg.types import AnyArray

# Values of full-size logits that one device makes at once: 40 MB, which a TPU's vector memory holds.
STRIP_VALUES = 10 << 20
# Rows of the small map that are added up one by one.
_FEW = 8


class Strips(NamedTuple):
  """Which rows of the small map each strip reads, and with what weights.

  The leading axis counts the strips, so that a mesh may spread it.

  Attributes:
    starts: first row that the strip reads, int32 (strips,).
    weights: of the rows that it reads, float32 (strips, rows of a strip, rows read).
  """

  starts: AnyArray
  weights: AnyArray


def plan_strips(
  out_rows: int, in_rows: int, *, rows: int, align_corners: bool = False, parts: int = 1
) -> Strips:
  """The strips of `rows` output rows each.

  The last of each of `parts` equal parts of the map may reach beyond it, where its weights are 0.
  """
  height = out_rows // parts
  per_part = -(-height // rows)
  matrix = resize_ops.interpolation_matrix(out_rows, in_rows, align_corners=align_corners)
  low, high, _ = resize_ops.neighbours(out_rows, in_rows, align_corners=align_corners)
  firsts = [part * height + i * rows for part in range(parts) for i in range(per_part)]
  lasts = [min(first + rows, (first // height + 1) * height) for first in firsts]
  bounds = [(low[first], high[last - 1] + 1) for first, last in zip(firsts, lasts, strict=True)]
  read = int(max(end - begin for begin, end in bounds))
  starts = np.minimum([begin for begin, _ in bounds], in_rows - read)
  weights = np.zeros((len(firsts), rows, read), np.float32)
  for i, (first, last, start) in enumerate(zip(firsts, lasts, starts, strict=True)):
    weights[i, : last - first] = matrix[first:last, start : start + read]
  return Strips(starts.astype(np.int32), weights)


def rows_of_strip(images: int, out_size: tuple[int, int], in_rows: int, classes: int) -> int:
  """Rows of a strip whose logits are about `STRIP_VALUES`, for so many images on one device."""
  height, width = out_size
  wanted = max(STRIP_VALUES // max(images * width * classes, 1), 1)
  if wanted >= height:
    return height
  # Whole steps of the small map's rows, of which then every strip reads equally many.
  step = max(height // in_rows, 1)
  wanted = max(wanted // step * step, min(step, wanted))
  even = [n for n in range(max(wanted // 2, 1), wanted + 1) if height % n == 0]
  return even[-1] if even else wanted


def map_rows_reference(
  function: Callable[..., Any],
  logits: Float[AnyArray, "b h w k"],
  pixels: Sequence[AnyArray],
  *,
  align_corners: bool = False,
) -> Any:
  """The definition: `function` of the whole map in float32."""
  logits = jnp.asarray(logits).astype(jnp.float32)
  logits = resize_ops.resize(logits, jnp.shape(pixels[0])[1:3], align_corners=align_corners)
  return function(logits, *map(jnp.asarray, pixels))


def map_rows(
  function: Callable[..., Any],
  logits: Float[AnyArray, "b h w k"],
  pixels: Sequence[AnyArray],
  *,
  align_corners: bool = False,
  fills: Sequence[Any] | None = None,
  derivative: Callable[..., Array] | None = None,
  kernels: Mapping[str, Callable[..., Any]] | None = None,
  rows: int | None = None,
  images: int | None = None,
) -> Any:
  """Equal to `map_rows_reference`: in strips, unless one strip holds the whole map.

  Args:
    function: see `map_strips`, like `fills` and `derivative`.
    logits: the small map.
    pixels: b H W arrays of the full size.
    align_corners: corner rule of the resize.
    fills: see `map_strips`.
    derivative: see `map_strips`.
    kernels: platform → (logits, *pixels) → what `function` gives, of its own, instead of strips.
    rows: of a strip; None chooses.
    images: that one device holds; None is all of them.
  """
  b, in_rows, _, classes = jnp.shape(logits)
  height, width = jnp.shape(pixels[0])[1:3]
  rows = rows or rows_of_strip(images or b, (height, width), in_rows, classes)
  if rows >= height:
    return map_rows_reference(function, logits, pixels, align_corners=align_corners)
  strips = plan_strips(height, in_rows, rows=rows, align_corners=align_corners)

  def by_strips(logits, *pixels):
    settings = dict(align_corners=align_corners, fills=fills, derivative=derivative)
    return map_strips(function, logits, pixels, strips, width, **settings)

  kernels = kernels or {}
  choice = {platform: choose_form(platform, kernel=platform in kernels) for platform in PLATFORMS}
  forms = {"strips": by_strips} | {f"{platform} kernel": kernel for platform, kernel in kernels.items()}
  return by_platform(choice, forms)(jnp.asarray(logits), *map(jnp.asarray, pixels))


def choose_form(platform: str, *, kernel: bool) -> str:
  """The table: the platform's kernel or "strips", where the function has such a kernel or not."""
  takes = takes_kernels(platform) or takes_gpu_kernels(platform)
  return f"{platform} kernel" if kernel and takes else "strips"


def map_strips(
  function: Callable[..., Any],
  logits: Float[AnyArray, "b h w k"],
  pixels: Sequence[AnyArray],
  strips: Strips,
  width: int,
  *,
  align_corners: bool = False,
  fills: Sequence[Any] | None = None,
  derivative: Callable[..., Array] | None = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
  """`function` of every strip of upsampled logits: maps joined, sums added up.

  Args:
    function: (logits float32 b r W k, *pixels b r W) → (maps, sums): a tuple of maps b r W, one number a
      pixel, and a tuple of sums over the strip's pixels, one or more numbers an image, b or b _.
    logits: the small map.
    pixels: b H W arrays of the full size.
    strips: `plan_strips`; those of a device's rows where the rows are spread.
    width: columns of the result.
    align_corners: of the columns.
    fills: what stands in `pixels` beyond the last row, where the last strip reaches further; 0 by default.
    derivative: (logits, *pixels, maps, sums, their cotangents) → gradient of the strip's logits; by default
      that of `function`, which is then evaluated again.

  Returns:
    (maps b H W, sums), in float32 or the integers that `function` gives.
  """
  logits = jnp.asarray(logits)
  pixels = tuple(map(jnp.asarray, pixels))
  height, (count, rows) = pixels[0].shape[1], np.shape(strips.weights)[:2]
  fills = (0,) * len(pixels) if fills is None else fills
  beyond = count * rows - height
  parts = tuple(
    _cut(jnp.pad(x, [(0, 0), (0, beyond), (0, 0)], constant_values=fill) if beyond else x, count)
    for x, fill in zip(pixels, fills, strict=True)
  )
  strips = Strips(*map(jnp.asarray, strips))
  maps, sums = _run_compiled(function, derivative, width, align_corners, logits, parts, strips)
  return jax.tree.map(lambda x: _join(x)[:, :height], maps), sums


def _cut(x, count: int):
  """Cuts b H W into strips b r W."""
  return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)


def _join(x):
  return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _run(function, derivative, width, align_corners, logits, parts, strips):
  """(maps of each strip, sums over all)."""
  del derivative

  def results(start, weights, pixels):
    return function(_upsample(logits, start, weights, width, align_corners), *pixels)

  def body(sums, strip):
    maps, more = results(*strip)
    return jax.tree.map(jnp.add, sums, more), maps

  every = (*strips, parts)
  _, shapes = jax.eval_shape(results, *jax.tree.map(lambda x: x[0], every))
  zeros = jax.tree.map(lambda s: _zeros(s.shape, s.dtype, like=strips.starts), shapes)
  sums, maps = lax.scan(body, zeros, every)
  return maps, sums


def _run_fwd(function, derivative, width, align_corners, logits, parts, strips):
  maps, sums = _run(function, derivative, width, align_corners, logits, parts, strips)
  # Only a derivative of the function's own reads its results.
  return (maps, sums), (logits, parts, strips, (maps, sums) if derivative is not None else None)


def _run_bwd(function, derivative, width, align_corners, residuals, cotangents):
  logits, parts, strips, results = residuals
  map_cotangents, sum_cotangents = cotangents

  def body(total, strip):
    start, weights, pixels, maps, map_cts = strip
    small = _read(logits, start, weights).astype(jnp.float32)
    z, pull = jax.vjp(lambda x: _enlarge(x, weights, width, align_corners), small)
    if derivative is None:
      _, pull_function = jax.vjp(lambda z: function(z, *pixels), z)
      (dz,) = pull_function((map_cts, sum_cotangents))
    else:
      dz = derivative(z, *pixels, maps, results[1], map_cts, sum_cotangents)
    (dx,) = pull(dz)
    # Added in place, to the rows that the strip read.
    before = lax.dynamic_slice_in_dim(total, start, dx.shape[1], axis=1)
    return lax.dynamic_update_slice_in_dim(total, before + dx, start, axis=1), None

  maps = None if results is None else results[0]
  zeros = _zeros(logits.shape, jnp.float32, like=strips.starts)
  total, _ = lax.scan(body, zeros, (strips.starts, strips.weights, parts, maps, map_cotangents))
  return total.astype(logits.dtype), jax.tree.map(_no_gradient, parts), jax.tree.map(_no_gradient, strips)


_run.defvjp(_run_fwd, _run_bwd)


# Compiled once for each function also where nobody else compiles it.
_run_compiled = jax.jit(_run, static_argnums=(0, 1, 2, 3))


def _zeros(shape, dtype, *, like):
  """Zeros that count as different by device inside of a `shard_map` over whose axis `like` differs."""
  return jnp.zeros(shape, dtype) + (0 * like.reshape(-1)[0]).astype(dtype)


def _no_gradient(x):
  return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape, jax.dtypes.float0)


def _read(logits, start, weights):
  return lax.dynamic_slice_in_dim(logits, start, weights.shape[1], axis=1)


def _upsample(logits, start, weights, width: int, align_corners: bool):
  return _enlarge(_read(logits, start, weights), weights, width, align_corners)


def _enlarge(x, weights, width: int, align_corners: bool):
  """Rows that a strip reads → its rows, then all columns, in float32."""
  x, read = x.astype(jnp.float32), weights.shape[1]
  if read <= _FEW:
    # A weighted sum of a handful of rows at the small width is not worth the matrix unit.
    x = sum(x[:, i, None] * weights[:, i, None, None] for i in range(read))
  else:
    x = resize_ops.apply_matrix(weights, x, 1)
  in_width = x.shape[2]
  if width == in_width:
    return x
  matrix = resize_ops.interpolation_matrix(width, in_width, align_corners=align_corners)
  # On a TPU three passes of the matrix unit instead of six: 16 bits of each logit, which is all that a
  # network in bfloat16 gives. A GPU's three passes would be TF32, with 10.
  return lax.platform_dependent(
    x,
    tpu=lambda x: resize_ops.apply_matrix(matrix, x, 2, precision=lax.Precision.HIGH),
    default=lambda x: resize_ops.resize_axis(x, 2, width, align_corners=align_corners),
  )
