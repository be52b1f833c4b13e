"""DeepLab v3+ decoder (https://arxiv.org/abs/1802.02611, §3.1): ASPP joined with a fine, low-level feature.

Written from the paper; what published heads do differently is a field.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers.atrous import ConvNorm, SeparableConv
from jaxseg.layers.conv import Conv
from jaxseg.layers.pyramid import ASPP, Order
from jaxseg.layers.resize import resize
from jaxseg.types import Features


class DeepLabV3Plus(nn.Module):
  """Features → logits at the resolution of the first of `stages`.

  Attributes:
    num_classes: None returns the map before the classifier.
    stages: the low-level feature, and the one the pyramid reads.
    channels: of the pyramid and of the convolutions after it: 256, or 512 (mmsegmentation).
    low_level_channels: to which a 1×1 reduces the low-level feature.
    rates, image_pooling, pool_window, concat_order, fuse_kernel: see `layers.pyramid.ASPP`.
    separable: the 3×3 convolutions of pyramid and decoder are depthwise 3×3 and 1×1.
    num_convs: 3×3 convolutions on the joined map.
    dropout: drop whole channels (mmsegmentation), or single elements.
    aspp_dropout_rate: after the pyramid (TensorFlow).
    dropout_rate: before the classifier (mmsegmentation).
    align_corners: corner rule of resizes, also that of the logits to the image (TensorFlow).
    norm_epsilon, norm_momentum: of the BatchNorms; the momentum is the weight of the new statistic.
  """

  num_classes: int | None = None
  stages: tuple[str, str] = ("stage1", "stage4")
  channels: int = 256
  low_level_channels: int = 48
  rates: tuple[int, ...] = (6, 12, 18)
  image_pooling: bool = True
  pool_window: tuple[int, ...] = ()
  concat_order: Order = "pool_first"
  fuse_kernel: int = 1
  separable: bool = False
  num_convs: int = 2
  dropout: Literal["channels", "elements"] = "elements"
  aspp_dropout_rate: float = 0.1
  dropout_rate: float = 0.0
  align_corners: bool = False
  norm_epsilon: float = 1e-5
  norm_momentum: float = 0.1
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    missing = [stage for stage in self.stages if stage not in features]
    if missing:
      raise ValueError(
        f"DeepLabV3Plus reads {missing}, but the encoder gives {sorted(features)}; set stages="
      )
    low, x = (jnp.asarray(features[stage]) for stage in self.stages)
    norm = dict(dtype=self.dtype, epsilon=self.norm_epsilon, momentum=self.norm_momentum)
    axes = (1, 2) if self.dropout == "channels" else ()
    x = ASPP(
      self.channels,
      self.rates,
      self.separable,
      self.image_pooling,
      self.pool_window,
      self.concat_order,
      self.fuse_kernel,
      self.align_corners,
      norm_epsilon=self.norm_epsilon,
      norm_momentum=self.norm_momentum,
      dtype=self.dtype,
      name="aspp",
    )(x, train=train)
    x = nn.Dropout(self.aspp_dropout_rate, broadcast_dims=axes, deterministic=not train)(x)
    low = ConvNorm(self.low_level_channels, **norm, name="low_level")(low, train=train)
    x = jnp.concatenate([resize(x, low.shape[1:3], align_corners=self.align_corners), low], -1)
    for i in range(self.num_convs):
      if self.separable:
        conv = SeparableConv(self.channels, **norm, name=f"conv{i}")
      else:
        conv = ConvNorm(self.channels, 3, **norm, name=f"conv{i}")
      x = conv(x, train=train)
    x = nn.Dropout(self.dropout_rate, broadcast_dims=axes, deterministic=not train)(x)
    if self.num_classes is None:
      return x
    init = nn.initializers.normal(0.01)
    return Conv(self.num_classes, kernel_init=init, dtype=self.dtype, name="classifier")(x)
