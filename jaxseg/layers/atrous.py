"""A 3×3 convolution at any rate, and separable ones, for atrous pyramids and dilated stages."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.errors import UserError
from jaxseg.layers import spatial
from jaxseg.layers.conv import Conv, DepthwiseConv, Initializer, fan_out_normal
from jaxseg.layers.norm import BatchNorm
from jaxseg.ops.atrous import atrous_conv
from jaxseg.ops.bias import add_bias

Activation = Literal["relu", "relu6", "none"]
# Zeros before a strided convolution: (k - 1) / 2 on both sides, or TensorFlow's "SAME",
# which depends on the size and puts the odd one after.
Padding = Literal["centred", "same"]
OUTPUT_STRIDES = (8, 16, 32)


class AtrousConv(nn.Module):
  """3×3 at stride 1, keeping the size; parameters as `Conv`'s. See `ops.atrous`."""

  features: int
  rate: int = 1
  use_bias: bool = True
  kernel_init: Initializer = fan_out_normal()
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
    kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    rate = self.rate

    def apply(x, kernel, rows):
      # Without padding, rows of neighbours stand where it was.
      return atrous_conv(x, kernel, rate=rate, has_halo=rows == (0, 0))

    y = spatial.windowed(apply, x, (kernel,), size=3, dilation=rate, padding=(rate, rate))
    return add_bias(y, bias)


class ConvNorm(nn.Module):
  """Convolution without bias, BatchNorm, activation; `conv` and `norm` in the tree.

  Attributes:
    features: output channels; None makes it depthwise.
    kernel_size, strides, dilation: of the convolution.
    activation: applied last.
    padding: see `Padding`; they differ only where the convolution strides.
    folded: the convolution has a bias and there is no BatchNorm, as in weights exported for inference.
    epsilon, momentum, scale_init: of the BatchNorm.
  """

  features: int | None
  kernel_size: int = 1
  strides: int = 1
  dilation: int = 1
  activation: Activation = "relu"
  padding: Padding = "centred"
  folded: bool = False
  epsilon: float = 1e-5
  momentum: float = 0.1
  dtype: Any = None
  scale_init: Initializer = nn.initializers.ones_init()

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo k"]:
    padding = None
    if self.padding == "same" and self.strides > 1 and self.kernel_size > 1:
      x, padding = _pad_same(x, self.kernel_size, self.strides, self.dilation), 0
    y = self._conv(x.shape[-1], padding)(x)
    if self.folded:
      y = nn.relu(y) if self.activation != "none" else y
    else:
      slope = None if self.activation == "none" else jnp.zeros(y.shape[-1])
      fields = dict(dtype=self.dtype, scale_init=self.scale_init)
      norm = BatchNorm(self.epsilon, self.momentum, **fields, name="norm")
      y = norm(y, train=train, slope=slope)
    return jnp.minimum(y, 6) if self.activation == "relu6" else y

  def _conv(self, channels: int, padding: int | None) -> nn.Module:
    fields = dict(use_bias=self.folded, dtype=self.dtype, name="conv")
    if self.features is None:
      init = fan_out_normal(groups=channels)
      return DepthwiseConv(self.kernel_size, self.strides, self.dilation, padding, kernel_init=init, **fields)
    if self.kernel_size == 3 and self.strides == 1 and self.dilation > 1:
      return AtrousConv(self.features, self.dilation, **fields)
    return Conv(
      self.features,
      self.kernel_size,
      self.strides,
      self.dilation,
      padding,
      kernel_init=fan_out_normal(),
      **fields,
    )


class SeparableConv(nn.Module):
  """A depthwise 3×3 and a 1×1, each with BatchNorm or `folded`, and each with the activation (or neither)."""

  features: int
  strides: int = 1
  dilation: int = 1
  activation: Activation = "relu"
  folded: bool = False
  epsilon: float = 1e-5
  momentum: float = 0.1
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo k"]:
    fields = dict(activation=self.activation, folded=self.folded, dtype=self.dtype)
    fields |= dict(epsilon=self.epsilon, momentum=self.momentum)
    x = ConvNorm(None, 3, self.strides, self.dilation, **fields, name="depthwise")(x, train=train)
    return ConvNorm(self.features, **fields, name="pointwise")(x, train=train)


def check_output_stride(what: str, output_stride: Any) -> None:
  """Raises a ValueError that names the strides that dilated encoders can give."""
  if output_stride not in OUTPUT_STRIDES:
    known = f"{', '.join(map(str, OUTPUT_STRIDES[:-1]))} or {OUTPUT_STRIDES[-1]}"
    raise UserError(f"output_stride is {output_stride}, but {what} gives {known}; choose one of them")


def _pad_same(x: Float[Array, "b h w c"], kernel_size: int, strides: int, dilation: int):
  """TensorFlow's rule: as many outputs as strides begin in the input, the odd zero at the end."""
  sides = []
  for n in x.shape[1:3]:
    total = max((-(-n // strides) - 1) * strides + (kernel_size - 1) * dilation + 1 - n, 0)
    sides.append((total // 2, total - total // 2))
  return jnp.pad(x, ((0, 0), *sides, (0, 0)))
