"""MobileNetV2 (https://arxiv.org/abs/1801.04381) without its last 1×1, dilated as DeepLab uses it.

Written from the paper. TensorFlow's weights want `padding="same"`, and below width 1
channels that are not rounded to multiples of 8 (`divisible_by=1`).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.layers.atrous import ConvNorm, Padding, check_output_stride
from jaxseg.types import Features, Image

_STRIDES = (1, 2, 2, 2, 1, 2, 1)
# Groups whose output is the last one of its stride.
_STAGE_ENDS = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class InvertedResidual(nn.Module):
  """1×1 expansion, depthwise 3×3, linear 1×1, and the input added where the shape allows."""

  features: int
  expansion: int = 6
  stride: int = 1
  rate: int = 1
  padding: Padding = "centred"
  folded: bool = False
  norm_epsilon: float = 1e-3
  norm_momentum: float = 3e-3
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo k"]:
    conv = partial(
      ConvNorm,
      padding=self.padding,
      folded=self.folded,
      epsilon=self.norm_epsilon,
      momentum=self.norm_momentum,
      dtype=self.dtype,
    )
    y = x
    if self.expansion > 1:
      y = conv(x.shape[-1] * self.expansion, activation="relu6", name="expand")(y, train=train)
    y = conv(None, 3, self.stride, self.rate, "relu6", name="depthwise")(y, train=train)
    y = conv(self.features, activation="none", name="project")(y, train=train)
    return x + y if x.shape == y.shape else y


class MobileNetV2(CheckedModule):
  """Seven groups of inverted residuals; stages at strides 4, 8, 16 and 32, or as `output_stride` allows.

  Attributes:
    depths: blocks of each group.
    widths: their channels, before the multiplier.
    width_multiplier: of all channels.
    divisible_by: channels are rounded to a multiple of it, never down by more than a tenth.
    expansion: channels inside a block over its input's; the first group has 1.
    output_stride: 8, 16 or 32; where a block may not stride, rates double.
    contract_dilation: the block that may not stride keeps the rate before it (TensorFlow); otherwise it
      already has the wider one (mmsegmentation).
    padding: of the strided convolutions: "centred", or TensorFlow's "same".
    folded: convolutions have biases and there is no BatchNorm, as in weights exported for inference.
    frozen_norm: BatchNorm uses its stored statistics in training too.
    norm_epsilon, norm_momentum: of the BatchNorms; the momentum is the weight of the new statistic.
    in_channels: of the image.
  """

  depths: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
  widths: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)
  width_multiplier: float = 1.0
  divisible_by: int = 8
  expansion: int = 6
  output_stride: int = 32
  contract_dilation: bool = True
  padding: Padding = "centred"
  folded: bool = False
  frozen_norm: bool = False
  norm_epsilon: float = 1e-3
  norm_momentum: float = 3e-3
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return ("stage1", "stage2", "stage3", "stage4")

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    check_output_stride("MobileNetV2", self.output_stride)
    train = train and not self.frozen_norm
    fields = dict(padding=self.padding, folded=self.folded, dtype=self.dtype)
    norm = dict(epsilon=self.norm_epsilon, momentum=self.norm_momentum)
    stem = ConvNorm(self.channels(32), 3, 2, activation="relu6", **fields, **norm, name="stem")
    x = stem(jnp.asarray(image, self.dtype), train=train)
    features, stride, rate, number = {}, 2, 1, 0
    for group, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
      for n in range(depth):
        step, before = _STRIDES[group] if n == 0 else 1, rate
        if step > 1 and stride >= self.output_stride:
          rate, step = rate * step, 1
          before = before if self.contract_dilation else rate
        stride *= step
        x = InvertedResidual(
          self.channels(width),
          self.expansion if group else 1,
          step,
          before,
          norm_epsilon=self.norm_epsilon,
          norm_momentum=self.norm_momentum,
          **fields,
          name=f"block{number}",
        )(x, train=train)
        number += 1
      if group in _STAGE_ENDS:
        features[_STAGE_ENDS[group]] = x
    return features

  def channels(self, width: int) -> int:
    """`width` times the multiplier, rounded."""
    wanted, unit = width * self.width_multiplier, self.divisible_by
    rounded = max(unit, int(wanted + unit / 2) // unit * unit)
    return rounded + unit if rounded < 0.9 * wanted else rounded


mobilenetv2 = partial(MobileNetV2)
