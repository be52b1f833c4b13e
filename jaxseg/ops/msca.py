"""A depthwise square and pairs of strips over it, summed: the convolutions of MSCA (https://arxiv.org/abs/2209.08575).

They are one operation so that rows of neighbours are exchanged once for all of them: 12 on each side
for 5×5 and 21×1, where one exchange for each convolution would be eight.

- Definition: `msca_reference`, one convolution after the other.
- "kernel", for TPUs: all of them on a map that stays in vector memory (`ops.msca_kernel`).
- "convolutions": the definition, each convolution in its platform's form (`ops.depthwise.choose_form`).
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxseg.ops import msca_kernel
from jaxseg.ops.bias import add_bias
from jaxseg.ops.definition import PLATFORMS, by_platform, defined_by, takes_kernels
from jaxseg.ops.depthwise import depthwise_conv

# kernel (kh, kw, 1, c) and bias (c,)
Weights = tuple[Float[Array, "_ _ 1 c"], Float[Array, " c"]]


def msca_reference(
  x: Float[Array, "b h w c"],
  square: Weights,
  strips: Sequence[tuple[Weights, Weights]],
  *,
  inside: Bool[Array, " _"] | None = None,
  on_devices: Callable[[Callable], Callable | None] | None = None,
) -> Float[Array, "b _ w c"]:
  """The k×k convolution of `x`, plus for each pair a 1×n, then an n×1 of that. Zeros lie around every map.

  Args:
    x: the map; with `inside`, also `msca_halo` rows of neighbours (or zeros) on both sides.
    square: weights of the k×k, k odd.
    strips: pairs of weights, (1×n, n×1), n odd.
    inside: for the rows of `x` without (k − 1) / 2 on each side, whether they lie in the image: beyond it
      are zeros for the strips, not what the square makes of zeros. None: `x` is the whole map.
    on_devices: for the convolutions, as `depthwise_conv` takes it.
  """
  halo = max((_half(column) for _, column in strips), default=0) if inside is not None else 0

  def conv(x, weights):
    kernel, bias = weights
    rows, columns = ((k - 1) // 2 for k in kernel.shape[:2])
    rows = 0 if inside is not None else rows
    y = depthwise_conv(x, kernel, padding=((rows, rows), (columns, columns)), on_devices=on_devices)
    return add_bias(y, bias)

  def keep(y, around: int):
    if inside is None:
      return y
    cut = halo - around
    return jnp.where(inside[cut : inside.shape[0] - cut, None, None], y, 0)

  y = keep(conv(x, square), halo)
  total = _crop(y, halo)
  for row, column in strips:
    # No more rows than this strip reads.
    reach = _half(column) if inside is not None else 0
    part = keep(conv(_crop(y, halo - reach), row), reach)
    total = total + conv(part, column)
  return total


@defined_by(msca_reference)
def msca(
  x: Float[Array, "b h w c"],
  square: Weights,
  strips: Sequence[tuple[Weights, Weights]],
  *,
  inside: Bool[Array, " _"] | None = None,
  on_devices: Callable[[Callable], Callable | None] | None = None,
) -> Float[Array, "b _ w c"]:
  """Equal to `msca_reference`, which has the arguments, in the platform's form.

  `on_devices` makes of the kernel, (x, weights) → y, one that runs on each device of a mesh for its images,
  or None where there must be none; without it the kernel runs as it is.
  """
  if inside is not None:
    return msca_reference(x, square, strips, inside=inside)
  forms = {"convolutions": partial(msca_reference, on_devices=on_devices)}
  sizes = msca_kernel.Sizes(square[0].shape[0], tuple(row[0].shape[1] for row, _ in strips))
  kernel = None
  if msca_kernel.fits(x.shape, x.dtype, sizes):
    kernel = partial(msca_kernel.msca, sizes=sizes)
    kernel = kernel if on_devices is None else on_devices(kernel)
  if kernel is not None:
    forms["kernel"] = lambda x, square, strips: kernel(x, pack(square, strips))
  choice = {platform: choose_form(platform, kernel=kernel is not None) for platform in PLATFORMS}
  return by_platform(choice, forms)(x, square, tuple(strips))


def choose_form(platform: str, *, kernel: bool) -> str:
  """The table: "kernel" or "convolutions" for a platform, and shapes that the kernel takes or not.

  TPU: by the v5e compiler (benchmarks/results/tpu_v5e_aot.md); the kernel was not run on a chip.
  """
  return "kernel" if kernel and takes_kernels(platform) else "convolutions"


def pack(square: Weights, strips: Sequence[tuple[Weights, Weights]]) -> Float[Array, "n c"]:
  """The weights as `ops.msca_kernel` takes them."""
  every = [square, *(weights for pair in strips for weights in pair)]
  channels = square[0].shape[-1]
  taps = [kernel.reshape(-1, channels) for kernel, _ in every]
  return jnp.concatenate([*taps, jnp.stack([bias for _, bias in every])]).astype(jnp.float32)


def msca_halo(square: int, strips: Sequence[int]) -> int:
  """Rows of a neighbour that the operation reads: half the square and half the longest strip."""
  return (square - 1) // 2 + (max(strips, default=1) - 1) // 2


def _half(weights: Weights) -> int:
  """Rows that a centred kernel reads above its own."""
  return (weights[0].shape[0] - 1) // 2


def _crop(x, rows: int):
  return x[:, rows : x.shape[1] - rows] if rows else x
