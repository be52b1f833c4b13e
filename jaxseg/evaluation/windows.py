"""Sliding windows on the device: the mean of overlapping windows' logits, in static shapes.

The rule is that of mmsegmentation: ceil((side − crop) / stride) + 1 windows along a side, the
last one moved back inside; logits are resized to the window, added up, and divided by how many
windows saw a pixel.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.layers.resize import resize_logits
from jaxseg.types import AnyArray


def slide_logits(
  network: Callable[[Float[Array, "n h w 3"]], Float[Array, "n _ _ k"]],
  image: Float[AnyArray, "b h w 3"],
  extent: Int[AnyArray, "b 2"],
  *,
  crop_size: tuple[int, int],
  stride: tuple[int, int],
  windows: int = 1,
  align_corners: bool = False,
) -> Float[Array, "b h w k"]:
  """Logits of every pixel of `image`, the mean over the windows that see it; to be called under jit.

  Args:
    network: normalised windows → their logits, at any resolution.
    image: normalised; a side is shorter than the crop, or a crop plus a multiple of the stride
      (`InferenceRule.canvas`).
    extent: rows and columns of each image that count; windows never leave them, and what is
      beyond gets zeros.
    crop_size: of a window; a side of `image` that is shorter is one window.
    stride: between neighbouring windows.
    windows: how many of each image go through the network at once, which bounds the memory.
    align_corners: of the resize from the decoder's resolution to the window.
  """
  b, *sides = image.shape[:3]
  window = tuple(min(crop, side) for crop, side in zip(crop_size, sides, strict=True))
  grid = tuple(-(-(side - crop) // step) + 1 for side, crop, step in zip(sides, window, stride, strict=True))
  starts = [
    jnp.minimum(jnp.arange(grid[axis]) * stride[axis], extent[:, axis, None] - window[axis])
    for axis in (0, 1)
  ]
  tops = jnp.repeat(starts[0], grid[1], axis=1)
  lefts = jnp.tile(starts[1], (1, grid[0]))
  total = grid[0] * grid[1]
  rounds = -(-total // min(windows, total))
  at_once = -(-total // rounds)
  # A round that is not full repeats the last window, which then counts for nothing.
  order = jnp.minimum(jnp.arange(rounds * at_once), total - 1).reshape(rounds, at_once)
  counts = (jnp.arange(rounds * at_once) < total).reshape(rounds, at_once)

  def cut(image, tops, lefts):
    return jax.vmap(lambda top, left: lax.dynamic_slice(image, (top, left, 0), (*window, image.shape[-1])))(
      tops, lefts
    )

  def add(sums, logits, top, left):
    here = lax.dynamic_slice(sums, (top, left, 0), (*window, sums.shape[-1]))
    return lax.dynamic_update_slice(sums, here + logits, (top, left, 0))

  def one_round(sums, members):
    order, counts = members
    here_tops, here_lefts = tops[:, order], lefts[:, order]
    cuts = jax.vmap(cut)(image, here_tops, here_lefts)
    logits = network(cuts.reshape(b * at_once, *window, cuts.shape[-1]))
    logits = resize_logits(logits, window, align_corners=align_corners)
    logits = logits.reshape(b, at_once, *window, -1)
    for i in range(at_once):
      counted = jnp.where(counts[i], logits[:, i], 0.0)
      sums = jax.vmap(add)(sums, counted, here_tops[:, i], here_lefts[:, i])
    return sums, None

  classes = jax.eval_shape(network, jax.ShapeDtypeStruct((b, *window, image.shape[-1]), image.dtype)).shape[
    -1
  ]
  sums = jnp.zeros((b, *sides, classes), jnp.float32)
  if rounds == 1:
    sums, _ = one_round(sums, (order[0], counts[0]))
  else:
    sums, _ = lax.scan(one_round, sums, (order, counts))
  # How many windows see a row times how many see a column.
  seen = [
    jnp.sum((pixel >= start[..., None]) & (pixel < start[..., None] + size), axis=1)
    for start, size, pixel in zip(starts, window, map(jnp.arange, sides), strict=True)
  ]
  times = jnp.maximum(seen[0][:, :, None] * seen[1][:, None, :], 1)
  return sums / times[..., None]


def mirrored(x: Float[AnyArray, "b h w c"], width: Int[AnyArray, "b"]) -> Float[Array, "b h w c"]:
  """The first `width` columns of each image from right to left; those beyond stay."""
  column = jnp.arange(x.shape[2])
  source = jnp.where(column < width[:, None], width[:, None] - 1 - column, column)
  return jnp.take_along_axis(x, source[:, None, :, None], axis=2)
