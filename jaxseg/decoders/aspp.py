"""Atrous pyramids of DeepLab v2 on ResNet (https://arxiv.org/abs/1606.00915) and v3 (https://arxiv.org/abs/1706.05587).

Written from the papers; what published heads do differently is a field. The v3 defaults are
the paper's at output stride 16; at 8 its rates double.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import catalog
from jaxseg.catalog import CheckedModule
from jaxseg.layers.atrous import AtrousConv, ConvNorm
from jaxseg.layers.conv import Conv
from jaxseg.layers.pyramid import ASPP, Order
from jaxseg.types import Features


class SummedASPP(CheckedModule):
  """v2: one 3×3 with bias for each rate gives class scores, and they are summed.

  Attributes:
    num_classes: None returns the feature itself: there is no layer before the class scores.
    stage: feature to read; None takes the coarsest.
    rates: of the branches.
  """

  num_classes: int | None = None
  stage: str | None = None
  rates: tuple[int, ...] = (6, 12, 18, 24)
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    del train  # nothing here behaves differently
    x = jnp.asarray(features[self.stage or max(features)])
    if self.num_classes is None:
      return x
    init = nn.initializers.normal(0.01)
    branches = (
      AtrousConv(self.num_classes, rate, kernel_init=init, dtype=self.dtype, name=f"classifier{i}")
      for i, rate in enumerate(self.rates)
    )
    return sum(branch(x) for branch in branches)


class PyramidHead(CheckedModule):
  """What the heads of v3 and v3+ share: their fields, the pyramid, dropout, the classifier.

  Attributes:
    num_classes: None returns the map before the classifier.
    channels: of the pyramid's branches, and of what follows it: 256, or 512 (mmsegmentation).
    rates, separable, image_pooling, pool_window, concat_order, fuse_kernel: see `layers.pyramid.ASPP`.
    dropout: drop whole channels (mmsegmentation), or single elements.
    align_corners: corner rule of resizes, also that of the logits to the image (TensorFlow).
    norm_epsilon, norm_momentum: of the BatchNorms; the momentum is the weight of the new statistic.
  """

  num_classes: int | None = None
  channels: int = 256
  rates: tuple[int, ...] = (6, 12, 18)
  separable: bool = False
  image_pooling: bool = True
  pool_window: tuple[int, ...] = ()
  concat_order: Order = "pool_first"
  fuse_kernel: int = 1
  dropout: Literal["channels", "elements"] = "elements"
  align_corners: bool = False
  norm_epsilon: float = 1e-5
  norm_momentum: float = 0.1
  dtype: Any = None

  def pyramid(self, x: Array, *, train: bool, folded: bool = False) -> Array:
    """The pyramid on one feature."""
    shared = {name: getattr(self, name) for name in catalog.fields(ASPP) if name != "folded"}
    return ASPP(**shared, folded=folded, name="aspp")(x, train=train)

  def norm_fields(self) -> dict[str, Any]:
    """Fields that every `ConvNorm` and `SeparableConv` of the head gets."""
    return dict(epsilon=self.norm_epsilon, momentum=self.norm_momentum, dtype=self.dtype)

  def drop(self, x: Array, rate: float, *, train: bool) -> Array:
    """Dropout of channels or elements."""
    axes = (1, 2) if self.dropout == "channels" else ()
    return nn.Dropout(rate, broadcast_dims=axes, deterministic=not train)(x)

  def classify(self, x: Array) -> Array:
    """The 1×1 to the classes, where there are any."""
    if self.num_classes is None:
      return x
    init = nn.initializers.normal(0.01)
    return Conv(self.num_classes, kernel_init=init, dtype=self.dtype, name="classifier")(x)


class DeepLabV3(PyramidHead):
  """v3: ASPP, dropout, classifier on one stage. The fields not named here are `PyramidHead`'s.

  Attributes:
    stage: feature to read; None takes the coarsest.
    extra_conv: a further 3×3 convolution, BatchNorm and ReLU before the classifier (torchvision).
    dropout_rate: after the pyramid.
    folded: convolutions have biases and there is no BatchNorm, as in weights exported for inference.
  """

  stage: str | None = None
  extra_conv: bool = False
  dropout_rate: float = 0.1
  folded: bool = False

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    x = jnp.asarray(features[self.stage or max(features)])
    x = self.drop(self.pyramid(x, train=train, folded=self.folded), self.dropout_rate, train=train)
    if self.extra_conv:
      extra = ConvNorm(self.channels, 3, folded=self.folded, **self.norm_fields(), name="extra")
      x = extra(x, train=train)
    return self.classify(x)
