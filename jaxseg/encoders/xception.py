"""Aligned Xception-65 with atrous separable convolutions (https://arxiv.org/abs/1802.02611, figure 4).

Written from the paper and the facts of TensorFlow DeepLab's model: all pooling is strided
separable convolution, each depthwise convolution has a BatchNorm of its own.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.layers.atrous import ConvNorm, SeparableConv, check_output_stride
from jaxseg.types import Features, Image


class Unit(nn.Module):
  """Three separable convolutions, the last one strided, and a shortcut around them.

  Attributes:
    widths: of the three.
    stride, rates: of the last one; of each.
    shortcut: "conv" (1×1 and BatchNorm), "sum" of the input, or "none".
    activation_inside: ReLU after every BatchNorm, instead of one before each separable convolution.
  """

  widths: tuple[int, int, int]
  stride: int = 1
  rates: tuple[int, int, int] = (1, 1, 1)
  shortcut: str = "sum"
  activation_inside: bool = False
  norm_epsilon: float = 1e-3
  norm_momentum: float = 3e-4
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], *, train: bool
  ) -> tuple[Float[Array, "b ho wo k"], Float[Array, "b h w m"]]:
    """The output, and the map before the last separable convolution (the last before the stride)."""
    fields = dict(epsilon=self.norm_epsilon, momentum=self.norm_momentum, dtype=self.dtype)
    y = before = x
    for i, (width, rate) in enumerate(zip(self.widths, self.rates, strict=True)):
      before = y
      y = SeparableConv(
        width,
        self.stride if i == 2 else 1,
        rate,
        activation="relu" if self.activation_inside else "none",
        **fields,
        name=f"conv{i}",
      )(y if self.activation_inside else nn.relu(y), train=train)
    if self.shortcut == "conv":
      shortcut = ConvNorm(self.widths[-1], strides=self.stride, activation="none", **fields, name="shortcut")
      y = y + shortcut(x, train=train)
    elif self.shortcut == "sum":
      y = y + x
    return y, before


class Xception(CheckedModule):
  """Entry, middle and exit flow at strides 4, 8, 16 and 32, or as `output_stride` allows.

  "stage1" and "stage2" are the maps before the strides to 8 and 16, as the v3+ decoder reads
  them; "stage3" is the middle flow's output, "stage4" the exit flow's.

  Attributes:
    depths: units of the middle flow: 16 for Xception-65.
    output_stride: 8, 16 or 32; where a unit may not stride, the units after it double their rate.
    multi_grid: factors on the rate of the last unit's three convolutions.
    frozen_norm: BatchNorm uses its stored statistics in training too.
    norm_epsilon, norm_momentum: of the BatchNorms; the momentum is the weight of the new statistic.
    in_channels: of the image.
  """

  depths: tuple[int] = (16,)
  output_stride: int = 16
  multi_grid: tuple[int, int, int] = (1, 1, 1)
  frozen_norm: bool = False
  norm_epsilon: float = 1e-3
  norm_momentum: float = 3e-4
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return ("stage1", "stage2", "stage3", "stage4")

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    check_output_stride("Xception", self.output_stride)
    train = train and not self.frozen_norm
    fields = dict(norm_epsilon=self.norm_epsilon, norm_momentum=self.norm_momentum, dtype=self.dtype)
    conv = partial(ConvNorm, epsilon=self.norm_epsilon, momentum=self.norm_momentum, dtype=self.dtype)
    unit = partial(Unit, **fields)
    x = conv(32, 3, 2, name="stem0")(jnp.asarray(image, self.dtype), train=train)
    x = conv(64, 3, name="stem1")(x, train=train)

    x, _ = unit((128,) * 3, 2, shortcut="conv", name="entry0")(x, train=train)
    x, stage1 = unit((256,) * 3, 2, shortcut="conv", name="entry1")(x, train=train)
    # The unit that loses its stride keeps its rate; those after it widen.
    step = 2 if self.output_stride > 8 else 1
    x, stage2 = unit((728,) * 3, step, shortcut="conv", name="entry2")(x, train=train)
    rate = 2 // step
    for n in range(self.depths[0]):
      x, _ = unit((728,) * 3, rates=(rate,) * 3, name=f"middle{n}")(x, train=train)
    stage3 = x
    step = 2 if self.output_stride > 16 else 1
    last = unit((728, 1024, 1024), step, (rate,) * 3, shortcut="conv", name="exit0")
    x, _ = last(x, train=train)
    rates = tuple(rate * (2 // step) * grid for grid in self.multi_grid)
    end = unit((1536, 1536, 2048), 1, rates, "none", activation_inside=True, name="exit1")
    stage4, _ = end(x, train=train)
    return {"stage1": stage1, "stage2": stage2, "stage3": stage3, "stage4": stage4}


xception65 = partial(Xception)
