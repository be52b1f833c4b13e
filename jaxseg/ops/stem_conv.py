"""A convolution of few channels: of an image, or of the thin maps of a stem.

- Definition: `stem_conv_reference`, XLA's convolution.
- TPU: `by_rows`, each output row an image of its own, of the rows that its window reads. Sixteen images of
  three channels fill an eighth of a vector's lanes, whichever of both lies there; as many output rows fill
  them all, for rows that are read more than once. By the v5e compiler the stems of SegFormer and SegNeXt take
  a third to an eighth of the cycles so, with their gradients. In 16 bits the input's gradient is a sum of
  rounded terms, as many as windows overlap in the rows.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.definition import PLATFORMS, by_platform, defined_by
from jaxseg.ops.lanes import side_by_side

Pair = tuple[int, int]
# By the compiler 16 gain fivefold, and 32 nothing.
MOST_CHANNELS = 16


def stem_conv_reference(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw c k"],
  *,
  strides: Pair,
  padding: tuple[Pair, Pair],
) -> Float[Array, "b ho wo k"]:
  """The definition; `padding` is zeros (before, after) the rows and the columns, negative crops."""
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@defined_by(stem_conv_reference)
def stem_conv(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw c k"],
  *,
  strides: Pair,
  padding: tuple[Pair, Pair],
) -> Float[Array, "b ho wo k"]:
  """Equal to `stem_conv_reference`, which has the arguments, of sizes that are known."""
  fields = dict(strides=strides, padding=padding)
  forms = {"lax": partial(stem_conv_reference, **fields), "rows": partial(by_rows, **fields)}
  choice = {platform: choose_form(platform, x.shape[-1]) for platform in PLATFORMS}
  return by_platform(choice, forms)(x, kernel)


def choose_form(platform: str, channels: int) -> str:
  """The table: TPU by the v5e compiler (benchmarks/results/tpu_v5e_aot.md); nothing was run on a chip."""
  return "rows" if platform == "tpu" and channels <= MOST_CHANNELS else "lax"


def by_rows(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "kh kw c k"],
  *,
  strides: Pair,
  padding: tuple[Pair, Pair],
  columns: int = 1,
) -> Float[Array, "b ho wo k"]:
  """The form for TPUs; `columns` of the result lie side by side in the lanes (`ops.lanes`)."""
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*padding[0], 0), (0, 0, 0), (0, 0, 0)])
  b, h, w, c = x.shape
  rows = kernel.shape[0]
  ho = (h - rows) // strides[0] + 1
  last = (ho - 1) * strides[0] + 1
  read = jnp.stack([x[:, i : i + last : strides[0]] for i in range(rows)], 2)
  y = stem_conv_reference(
    read.reshape(b * ho, rows, w, c), kernel, strides=(1, strides[1]), padding=((0, 0), padding[1])
  )
  y = y.reshape(b, ho, *y.shape[2:])
  # What follows wants the channels in the lanes: brought there in x's dtype, not a normalisation's float32.
  return lax.optimization_barrier(side_by_side(y, columns)).reshape(y.shape)
