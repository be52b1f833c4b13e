"""SegFormer's all-MLP decoder (https://arxiv.org/abs/2105.15203, §3.2), in its published variants.

Written from the paper. NVlabs and Hugging Face project each level by a linear layer with
bias (width 256 for B0 and B1, 768 above) and join coarse to fine; mmsegmentation
projects by 1×1 convolution, BatchNorm and ReLU (width 256) and joins fine to coarse.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.errors import UserError
from jaxseg.layers.concat_conv import ConcatConv, Projection
from jaxseg.layers.conv import Conv, fan_out_normal
from jaxseg.layers.norm import BatchNorm
from jaxseg.types import Features

# PyTorch's initial rule for linear layers and convolutions left alone: uniform within 1 / √fan_in.
_torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LinearWeights(nn.Module):
  """The parameters of a linear layer, `kernel` (in, features) and `bias`, for a caller that applies them."""

  features: int

  @nn.compact
  def __call__(self, channels: int) -> Projection:
    kernel = self.param("kernel", _torch_default, (channels, self.features))
    bound = channels**-0.5

    def uniform(key, shape):
      return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return kernel, self.param("bias", uniform, (self.features,))


class AllMLP(CheckedModule):
  """Features → logits at the resolution of the first of `stages`.

  Attributes:
    num_classes: None returns the map before the classifier.
    stages: features to read, fine to coarse.
    width: channels of the projections and of the fused map.
    projection: of each level: "linear" with bias, or "conv" without bias, BatchNorm and ReLU.
    concat_order: which level's channels come first in the fusion's kernel.
    dropout: drop whole channels, or single elements (Hugging Face).
    dropout_rate: before the classifier.
    align_corners: corner rule of the resize.
  """

  num_classes: int | None = None
  stages: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4")
  width: int = 256
  projection: Literal["linear", "conv"] = "linear"
  concat_order: Literal["coarse_to_fine", "fine_to_coarse"] = "coarse_to_fine"
  dropout: Literal["channels", "elements"] = "channels"
  dropout_rate: float = 0.1
  align_corners: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    missing = [stage for stage in self.stages if stage not in features]
    if missing:
      raise UserError(f"AllMLP reads {missing}, but the encoder gives {sorted(features)}; set stages=")
    size = features[self.stages[0]].shape[1:3]
    names = self.stages[::-1] if self.concat_order == "coarse_to_fine" else self.stages
    levels = [jnp.asarray(features[name]) for name in names]
    projections = None
    if self.projection == "linear":
      # Not applied here: the fusion multiplies projection and kernel where that is less work.
      projections = [
        LinearWeights(self.width, name=f"project_{name}")(x.shape[-1])
        for name, x in zip(names, levels, strict=True)
      ]
    else:
      levels = [self._projected(name, x, train) for name, x in zip(names, levels, strict=True)]
    fuse = ConcatConv(self.width, align_corners=self.align_corners, dtype=self.dtype, name="fuse")
    x = fuse(levels, size, projections=projections)
    x = nn.relu(BatchNorm(dtype=self.dtype, name="fuse_norm")(x, train=train))
    axes = (1, 2) if self.dropout == "channels" else ()
    x = nn.Dropout(self.dropout_rate, broadcast_dims=axes, deterministic=not train)(x)
    if self.num_classes is None:
      return x
    init = _torch_default if self.projection == "linear" else nn.initializers.normal(0.01)
    return Conv(self.num_classes, kernel_init=init, dtype=self.dtype, name="classifier")(x)

  def _projected(self, name: str, x: Array, train: bool) -> Array:
    conv = partial(Conv, kernel_init=fan_out_normal(), use_bias=False, dtype=self.dtype)
    x = conv(self.width, name=f"project_{name}")(x)
    return nn.relu(BatchNorm(dtype=self.dtype, name=f"project_norm_{name}")(x, train=train))
