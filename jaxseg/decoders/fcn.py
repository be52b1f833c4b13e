"""Fully convolutional head (https://arxiv.org/abs/1411.4038): convolutions, then a 1×1 classifier.

With no convolutions it is CGNet's classifier; with one it is the auxiliary head of
the mmsegmentation DeepLab models.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.layers.conv import Conv
from jaxseg.layers.norm import BatchNorm
from jaxseg.types import Features


class FCN(CheckedModule):
  """`num_convs` × (3×3 convolution, BatchNorm, ReLU) and a 1×1 classifier on one stage.

  Attributes:
    num_classes: None returns the map before the classifier.
    stage: feature to read; None takes the coarsest.
    num_convs: convolutions before the classifier.
    channels: their width.
    use_bias: bias of the classifier (CGNet's published one has none, mmsegmentation's has).
    dropout_rate: whole channels are dropped before the classifier.
    norm_epsilon: of the BatchNorms.
  """

  num_classes: int | None = None
  stage: str | None = None
  num_convs: int = 0
  channels: int = 256
  use_bias: bool = True
  dropout_rate: float = 0.0
  norm_epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    x = jnp.asarray(features[self.stage or max(features)])
    for i in range(self.num_convs):
      x = Conv(self.channels, 3, use_bias=False, dtype=self.dtype, name=f"conv{i}")(x)
      x = nn.relu(BatchNorm(self.norm_epsilon, dtype=self.dtype, name=f"norm{i}")(x, train=train))
    x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
    if self.num_classes is None:
      return x
    return Conv(self.num_classes, 1, use_bias=self.use_bias, dtype=self.dtype, name="classifier")(x)
