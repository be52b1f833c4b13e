"""Convolutions whose padding is always written down, as in PyTorch.

Flax's default `"SAME"` pads (0, 1) at stride 2 where the reference pads (1, 1), so
every value shifts by a pixel. Here padding defaults to `(kernel - 1) / 2 · dilation`
on both sides, which is what the published models use.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.upsampled import for_own_images
from jaxseg.ops.bias import add_bias
from jaxseg.ops.definition import defined_by
from jaxseg.ops.depthwise import depthwise_conv
from jaxseg.ops.packed_conv import packed_conv
from jaxseg.ops.patch_conv import patch_conv
from jaxseg.ops.stem_conv import MOST_CHANNELS, stem_conv
from jaxseg.types import AnyArray

Size = int | tuple[int, int]
Initializer = Callable[..., Any]


def pair(value: Size) -> tuple[int, int]:
  """An int for both axes, or (rows, columns)."""
  return (value, value) if isinstance(value, int) else tuple(value)


def explicit_padding(
  kernel_size: Size, *, dilation: Size = 1, padding: Size | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
  """Zeros (before, after) on rows and columns; `None` centres an odd kernel."""
  if padding is None:
    padding = tuple((k - 1) // 2 * d for k, d in zip(pair(kernel_size), pair(dilation), strict=True))
  rows, columns = pair(padding)
  return (rows, rows), (columns, columns)


def fan_out_normal(*, groups: int = 1) -> Initializer:
  """Normal with variance 2 / fan_out, fan_out = kh·kw·out / groups: the reference's rule."""
  return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


class Conv(nn.Module):
  """2-D convolution; `kernel` (kh, kw, in / groups, out), `bias` (out,).

  `padding=None` means `(kernel_size - 1) // 2 * dilation` zeros on every side. A
  1×1 convolution at stride 1 runs as a matrix product, which XLA:CPU does in half
  the time; see `ops.patch_conv` for windows that touch, `ops.stem_conv` for few channels, and
  `ops.packed_conv` for a row of narrow maps, with `packed`. Several maps count as one, their channels joined.
  """

  features: int
  kernel_size: Size = 1
  strides: Size = 1
  dilation: Size = 1
  padding: Size | None = None
  groups: int = 1
  use_bias: bool = True
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros_init()
  packed: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[AnyArray, "b h w c"] | tuple[Float[AnyArray, "b h w _"], ...]
  ) -> Float[Array, "b ho wo k"]:
    size, strides, dilation = pair(self.kernel_size), pair(self.strides), pair(self.dilation)
    padding = explicit_padding(size, dilation=dilation, padding=self.padding)
    maps = x if isinstance(x, tuple) else (x,)
    channels = sum(y.shape[-1] for y in maps)
    kernel = self.param("kernel", self.kernel_init, (*size, channels // self.groups, self.features))
    bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
    *maps, kernel = nn.dtypes.promote_dtype(*maps, kernel, dtype=self.dtype)
    known = all(isinstance(n, int) for n in maps[0].shape[1:3])
    plain = known and dilation == (1, 1) and self.groups == 1
    if self.packed and plain and spatial.axis_size() == 1:
      return add_bias(packed_conv(maps, kernel, strides=strides, padding=padding), bias)
    x = maps[0] if len(maps) == 1 else jnp.concatenate(maps, -1)
    pointwise = size == (1, 1) and padding == ((0, 0), (0, 0)) and self.groups == 1
    # What a stride leaves of an open size has the same form only of convolutions, so that maps can be added.
    pointwise &= strides == (1, 1) or known
    patches = plain and size == strides and padding == ((0, 0), (0, 0))
    thin = plain and not pointwise and x.shape[-1] <= MOST_CHANNELS

    def apply(x, kernel, rows):
      if pointwise:
        return pointwise_conv(x, kernel, strides)
      if patches:
        return patch_conv(x, kernel)
      if thin:
        return stem_conv(x, kernel, strides=strides, padding=(rows, padding[1]))
      return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        (rows, padding[1]),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=self.groups,
      )

    window = dict(size=size[0], stride=strides[0], dilation=dilation[0], padding=padding[0])
    y = spatial.windowed(apply, x, (kernel,), **window)
    return add_bias(y, bias)


class Dense(nn.Module):
  """A product; `kernel` (c, features), `bias` (features,), whose gradient is a float32 sum in any dtype."""

  features: int
  kernel_init: Initializer = nn.initializers.lecun_normal()
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, "*b c"]) -> Float[Array, "*b k"]:
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return add_bias(x @ kernel, bias)


def pointwise_conv_reference(
  x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c k"], strides: tuple[int, int]
) -> Float[Array, "b ho wo k"]:
  """The definition."""
  return lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@defined_by(pointwise_conv_reference)
def pointwise_conv(
  x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c k"], strides: tuple[int, int]
) -> Float[Array, "b ho wo k"]:
  """A 1×1 convolution as a matrix product."""
  return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


class ConvWeights(nn.Module):
  """The parameters of a convolution or a dense layer, for a caller that applies them.

  Attributes:
    shape: of the kernel; its last axis is the bias's.
    kernel_init: of the kernel; the bias starts at zero.
    dtype: of the kernel that is returned; the bias stays as it is.
  """

  shape: tuple[int, ...]
  kernel_init: Initializer = nn.initializers.lecun_normal()
  dtype: Any = None

  @nn.compact
  def __call__(self) -> tuple[Float[Array, "*k c"], Float[Array, " c"]]:
    kernel = self.param("kernel", self.kernel_init, self.shape)
    bias = self.param("bias", nn.initializers.zeros_init(), self.shape[-1:])
    return jnp.asarray(kernel, self.dtype), bias


class DepthwiseConv(nn.Module):
  """One filter a channel; `kernel` (kh, kw, 1, c), `bias` (c,). See `ops.depthwise`."""

  kernel_size: Size = 3
  strides: Size = 1
  dilation: Size = 1
  padding: Size | None = None
  use_bias: bool = True
  kernel_init: Initializer = nn.initializers.lecun_normal()
  bias_init: Initializer = nn.initializers.zeros_init()
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b ho wo c"]:
    size, dilation = pair(self.kernel_size), pair(self.dilation)
    c = x.shape[-1]
    kernel = self.param("kernel", self.kernel_init, (*size, 1, c))
    bias = self.param("bias", self.bias_init, (c,)) if self.use_bias else None
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    strides, padding = pair(self.strides), explicit_padding(size, dilation=dilation, padding=self.padding)

    def apply(x, kernel, rows):
      window = dict(strides=strides, padding=(rows, padding[1]), dilation=dilation)
      return depthwise_conv(x, kernel, **window, on_devices=for_own_images)

    window = dict(size=size[0], stride=strides[0], dilation=dilation[0], padding=padding[0])
    y = spatial.windowed(apply, x, (kernel,), **window)
    return add_bias(y, bias)
