"""A convolution of narrow maps, whose neighbouring columns lie side by side in a TPU's lanes.

- Definition: `packed_conv_reference`, XLA's convolution of all maps joined.
- TPU: `by_columns`. A map of 32 channels fills a quarter of each tile. With four columns side by side it
  fills them, and a 3×3 convolution is one of 128 channels whose kernel has the taps where they belong and
  zeros between: as many passes of the matrix unit for a quarter of the pixels. Maps that are joined are
  convolved each with its part of the kernel, and summed. A row of such layers pays, where each takes what the
  last one made as it lies: by the v5e compiler CGNet's step, whose stem, first join and the strided
  convolution behind it are such a row, moves 1.33 GB an image of 680×680 so, and 2.67 without.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.ops.definition import PLATFORMS, by_platform, defined_by
from jaxseg.ops.lanes import columns_side_by_side, side_by_side
from jaxseg.ops.stem_conv import MOST_CHANNELS, by_rows, stem_conv_reference

Pair = tuple[int, int]


def packed_conv_reference(
  maps: Sequence[Float[Array, "b h w _"]],
  kernel: Float[Array, "kh kw c k"],
  *,
  strides: Pair,
  padding: tuple[Pair, Pair],
) -> Float[Array, "b ho wo k"]:
  """The definition: `maps` are joined; `padding` is zeros (before, after) the rows and the columns."""
  x = maps[0] if len(maps) == 1 else jnp.concatenate(maps, -1)
  return stem_conv_reference(x, kernel, strides=strides, padding=padding)


@defined_by(packed_conv_reference)
def packed_conv(
  maps: Sequence[Float[Array, "b h w _"]],
  kernel: Float[Array, "kh kw c k"],
  *,
  strides: Pair,
  padding: tuple[Pair, Pair],
) -> Float[Array, "b ho wo k"]:
  """Equal to `packed_conv_reference`, which has the arguments, of sizes that are known."""
  fields = dict(strides=strides, padding=padding)
  forms = {"joined": partial(packed_conv_reference, **fields), "columns": partial(by_columns, **fields)}
  return by_platform({platform: choose_form(platform) for platform in PLATFORMS}, forms)(tuple(maps), kernel)


def choose_form(platform: str) -> str:
  """The table: TPU by the v5e compiler (benchmarks/results/tpu_v5e_aot.md); nothing was run on a chip."""
  return "columns" if platform == "tpu" else "joined"


def by_columns(
  maps: Sequence[Float[Array, "b h w _"]],
  kernel: Float[Array, "kh kw c k"],
  *,
  strides: Pair,
  padding: tuple[Pair, Pair],
) -> Float[Array, "b ho wo k"]:
  """The form for TPUs; a map that it does not fit is convolved as it lies, one of few channels by rows."""
  total, first = None, 0
  for x in maps:
    c = x.shape[-1]
    part, first = kernel[:, :, first : first + c], first + c
    n = columns_side_by_side(x.shape[2], c)
    if _fits(n, kernel.shape[1], strides[1], padding[1]):
      y = _packed(x, part, n, strides, padding[0])
    elif c <= MOST_CHANNELS:
      wo = (x.shape[2] + sum(padding[1]) - kernel.shape[1]) // strides[1] + 1
      columns = columns_side_by_side(wo, kernel.shape[-1])
      y = by_rows(x, part, strides=strides, padding=padding, columns=columns)
    else:
      y = stem_conv_reference(x, part, strides=strides, padding=padding)
    total = y if total is None else total + y
  return total


def _fits(n: int, width: int, stride: int, padding: Pair) -> bool:
  """Whether a window reads no further than the columns beside those that it lies in, and is centred."""
  half = width // 2
  return n > 1 and width % 2 == 1 and half <= n and padding == (half, half) and n % stride == 0


def _packed(x, kernel, n: int, strides: Pair, rows: Pair):
  (b, _, w, _), (kh, kw, c, k), stride = x.shape, kernel.shape, strides[1]
  taps = _taps(n, kw, stride)
  wide = jnp.einsum("eijd,rdck->reicjk", taps.astype(kernel.dtype), kernel)
  wide = wide.reshape(kh, taps.shape[0], n * c, n // stride * k)
  y = stem_conv_reference(side_by_side(x, n), wide, strides=(strides[0], 1), padding=(rows, (1, 1)))
  return y.reshape(b, -1, w // stride, k)


def _taps(n: int, width: int, stride: int) -> np.ndarray:
  """(3, n, n / stride, width): 1 where, of the columns before, at and after, one reads another by a tap."""
  place = np.arange(3)[:, None, None] * n - n + np.arange(n)[:, None] - stride * np.arange(n // stride)
  return place[..., None] + width // 2 == np.arange(width)
