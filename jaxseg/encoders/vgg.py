"""VGG16 (https://arxiv.org/abs/1409.1556), "with holes" as DeepLab v1 and v2 use it (https://arxiv.org/abs/1412.7062).

Written from the papers. DeepLab's pools are 3×3 with one pixel around, where the original's
are 2×2; the last two do not stride, and the fifth block's convolutions have rate 2.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from jaxseg.catalog import CheckedModule
from jaxseg.errors import UserError
from jaxseg.layers.atrous import AtrousConv, check_output_stride
from jaxseg.layers.conv import Conv, fan_out_normal
from jaxseg.layers.pool import average_pool, max_pool
from jaxseg.types import Features, Image


class VGG(CheckedModule):
  """Five blocks of 3×3 convolutions with ReLU; "stage1".."stage5" are the outputs of their pools.

  Strides are 2, 4, 8, 16 and 32, or as `output_stride` allows: the pools after it do not
  stride, and the convolutions after those double their rate.

  Attributes:
    stage_sizes: convolutions of each block.
    widths: their channels.
    output_stride: 8, 16 or 32.
    pool_size: 3 (DeepLab), or 2 as ImageNet classifiers have it.
    ceil_pool: a pool keeps a last, partial window, as Caffe's do; on sizes 8n + 1 there is none.
    average_pool: a 3×3 average at stride 1 follows the last pool (DeepLab's pool5a).
    with_image: the image itself is "stage0", which the multi-scale head of DeepLab v1 reads.
    in_channels: of the image.
  """

  stage_sizes: tuple[int, int, int, int, int] = (2, 2, 3, 3, 3)
  widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
  output_stride: int = 8
  pool_size: int = 3
  ceil_pool: bool = False
  average_pool: bool = True
  with_image: bool = False
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return (("stage0",) if self.with_image else ()) + tuple(f"stage{i}" for i in range(1, 6))

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    del train  # nothing here behaves differently
    check_output_stride("VGG", self.output_stride)
    if self.pool_size not in (2, 3):
      raise UserError(f"pool_size is {self.pool_size}; choose 3 (DeepLab) or 2 (ImageNet)")
    x = jnp.asarray(image, self.dtype)
    features = {"stage0": x} if self.with_image else {}
    stride = rate = 1
    for i, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
      for n in range(size):
        x = nn.relu(self._conv(width, rate, f"stage{i + 1}_conv{n}")(x))
      step = 2 if stride < self.output_stride else 1
      x = self._pool(x, step)
      stride *= step
      # The fourth pool's lost stride widens the fifth block; the last pool's is left to the decoder.
      rate = 2 * rate if step == 1 else rate
      if i == 4 and self.average_pool:
        x = average_pool(x, size=3, stride=1, padding=((1, 1), (1, 1)))
      features[f"stage{i + 1}"] = x
    return features

  def _conv(self, width: int, rate: int, name: str) -> nn.Module:
    if rate > 1:
      return AtrousConv(width, rate, dtype=self.dtype, name=name)
    return Conv(width, 3, kernel_init=fan_out_normal(), dtype=self.dtype, name=name)

  def _pool(self, x: Array, stride: int) -> Array:
    if self.pool_size == 3:
      sides = tuple((1, 1 + (self.ceil_pool and stride == 2 and n % 2 == 0)) for n in x.shape[1:3])
    else:
      # At stride 1 a 2×2 window needs one pixel more to keep the size.
      sides = tuple((0, int(stride == 1 or (self.ceil_pool and n % 2 == 1))) for n in x.shape[1:3])
    return max_pool(x, size=self.pool_size, stride=stride, padding=sides)


vgg16 = partial(VGG)
