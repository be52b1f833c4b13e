"""Mix-FFN: a product, a 3×3 depthwise convolution, GELU, a product (https://arxiv.org/abs/2105.15203, §3.1).

It is the feed-forward of SegFormer's and of SegNeXt's blocks. Its hidden map is four to eight times as wide
as what goes in and comes out, and is most of what such a block moves.

- Definition: `mix_ffn_reference`, one operation after the other.
- "kernel", for TPUs: the hidden map stays in vector memory (`ops.mix_ffn_kernel`).
- "operations": the definition.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Array, Float

from jaxseg.ops import mix_ffn_kernel
from jaxseg.ops.bias import add_bias
from jaxseg.ops.definition import PLATFORMS, by_platform, defined_by, takes_kernels
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.gelu import gelu

# kernel (c, n), (3, 3, 1, n) or (n, c), and bias
Weights = tuple[Array, Float[Array, " _"]]

_three_by_three = partial(depthwise_conv, padding=((1, 1), (1, 1)))


def mix_ffn_reference(
  x: Float[Array, "b h w c"],
  fc1: Weights,
  dwconv: Weights,
  fc2: Weights,
  *,
  conv: Callable[[Array, Array], Array] | None = None,
  drop: Callable[[Array], Array] | None = None,
  on_devices: Callable[[Callable], Callable | None] | None = None,
) -> Float[Array, "b h w k"]:
  """fc2(gelu(dwconv(fc1(x)))); zeros lie around the hidden map.

  Args:
    x: the map; the kernels have its dtype.
    fc1: kernel (c, n) and bias.
    dwconv: kernel (3, 3, 1, n) and bias.
    fc2: kernel (n, k) and bias.
    conv: (map, kernel) → the depthwise convolution of it; None is that of the whole map.
    drop: dropout, after the activation and at the end.
    on_devices: for the convolution, as `depthwise_conv` takes it.
  """
  conv = conv or partial(_three_by_three, on_devices=on_devices)
  drop = drop or (lambda y: y)
  y = add_bias(x @ fc1[0], fc1[1])
  y = drop(gelu(add_bias(conv(y, dwconv[0]), dwconv[1])))
  return drop(add_bias(y @ fc2[0], fc2[1]))


@defined_by(mix_ffn_reference)
def mix_ffn(
  x: Float[Array, "b h w c"],
  fc1: Weights,
  dwconv: Weights,
  fc2: Weights,
  *,
  drop: Callable[[Array], Array] | None = None,
  on_devices: Callable[[Callable], Callable | None] | None = None,
) -> Float[Array, "b h w k"]:
  """Equal to `mix_ffn_reference`, which has the arguments, in the platform's form.

  `on_devices` makes of the kernel, (x, *weights) → y, one that runs on each device of a mesh for its images,
  or None where there must be none; without it the kernel runs as it is.
  """
  plain = partial(mix_ffn_reference, drop=drop, on_devices=on_devices)
  kernel = None
  square = fc1[0].shape == fc2[0].shape[::-1]
  if square and drop is None and mix_ffn_kernel.fits(x.shape, fc1[0].shape[-1], x.dtype):
    kernel = mix_ffn_kernel.mix_ffn if on_devices is None else on_devices(mix_ffn_kernel.mix_ffn)
  forms = {"operations": plain} | ({} if kernel is None else {"kernel": kernel})
  choice = {platform: choose_form(platform, kernel=kernel is not None) for platform in PLATFORMS}
  return by_platform(choice, forms)(x, fc1, dwconv, fc2)


def choose_form(platform: str, *, kernel: bool) -> str:
  """The table: "kernel" or "operations" for a platform, and shapes that the kernel takes or not.

  TPU: by the v5e compiler (benchmarks/results/tpu_v5e_aot.md); the kernel was not run on a chip.
  """
  return "kernel" if kernel and takes_kernels(platform) else "operations"
