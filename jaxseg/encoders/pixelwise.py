"""A model that sees colour and nothing else: 1×1 convolutions at full resolution.

It is a baseline, not a proposal: what it reaches is what a data set gives away
without any context, and what a real model has to beat.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseg.catalog import CheckedModule
from jaxseg.layers.conv import Conv
from jaxseg.layers.norm import BatchNorm
from jaxseg.types import Features, Image


class Pixelwise(CheckedModule):
  """Layers of 1×1 convolution, BatchNorm and ReLU at stride 1; the last one is "stage1".

  Attributes:
    widths: channels of each layer.
    in_channels: of the image.
  """

  widths: tuple[int, ...] = (24, 24)
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return ("stage1",)

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    x = jnp.asarray(image, self.dtype)
    for i, width in enumerate(self.widths, start=1):
      x = Conv(width, 1, use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
      x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm{i}")(x, train=train))
    return {"stage1": x}
