"""DeepLab v3+ decoder (https://arxiv.org/abs/1802.02611, §3.1): ASPP joined with a fine, low-level feature.

Written from the paper; what published heads do differently is a field.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.decoders.aspp import PyramidHead
from jaxseg.errors import UserError
from jaxseg.layers.atrous import ConvNorm, SeparableConv
from jaxseg.layers.resize import resize
from jaxseg.types import Features


class DeepLabV3Plus(PyramidHead):
  """Features → logits at the resolution of the first of `stages`.

  The fields not named here are those of `decoders.aspp.PyramidHead`; `separable` holds for the
  decoder's 3×3 convolutions, too.

  Attributes:
    stages: the low-level feature, and the one the pyramid reads.
    low_level_channels: to which a 1×1 reduces the low-level feature.
    num_convs: 3×3 convolutions on the joined map.
    aspp_dropout_rate: after the pyramid (TensorFlow).
    dropout_rate: before the classifier (mmsegmentation).
  """

  stages: tuple[str, str] = ("stage1", "stage4")
  low_level_channels: int = 48
  num_convs: int = 2
  aspp_dropout_rate: float = 0.1
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    missing = [stage for stage in self.stages if stage not in features]
    if missing:
      raise UserError(f"DeepLabV3Plus reads {missing}, but the encoder gives {sorted(features)}; set stages=")
    low, x = (jnp.asarray(features[stage]) for stage in self.stages)
    x = self.drop(self.pyramid(x, train=train), self.aspp_dropout_rate, train=train)
    low = ConvNorm(self.low_level_channels, **self.norm_fields(), name="low_level")(low, train=train)
    x = jnp.concatenate([resize(x, low.shape[1:3], align_corners=self.align_corners), low], -1)
    for i in range(self.num_convs):
      if self.separable:
        conv = SeparableConv(self.channels, **self.norm_fields(), name=f"conv{i}")
      else:
        conv = ConvNorm(self.channels, 3, **self.norm_fields(), name=f"conv{i}")
      x = conv(x, train=train)
    return self.classify(self.drop(x, self.dropout_rate, train=train))
