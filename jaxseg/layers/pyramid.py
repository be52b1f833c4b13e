"""Atrous spatial pyramid pooling with image-level features (https://arxiv.org/abs/1706.05587).

The image-level branch is one vector a picture. Where it is joined with the others, its
share of the convolution is worked out on that vector, never on a map that repeats it.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.atrous import ConvNorm, SeparableConv
from jaxseg.layers.conv import Initializer, fan_out_normal
from jaxseg.layers.norm import BatchNorm
from jaxseg.layers.resize import resize
from jaxseg.ops.bias import add_bias
from jaxseg.ops.definition import defined_by

Order = Literal["pool_first", "pool_last"]


class ASPP(nn.Module):
  """Image pooling, a 1×1, and a 3×3 for each rate, all to `channels`; joined by a convolution.

  Attributes:
    channels: of every branch and of the result.
    rates: of the 3×3 convolutions.
    separable: they are depthwise 3×3 and 1×1, BatchNorm and ReLU after each.
    image_pooling: the image-level branch.
    pool_window: rows and columns, in pixels of the feature map, over which it averages; () is the whole map.
      TensorFlow evaluates images larger than the training crop with the crop's window.
    concat_order: the image-level branch comes first (TensorFlow, mmsegmentation) or last (torchvision).
    fuse_kernel: of the joining convolution: 1, or 3 (mmsegmentation).
    align_corners: of the resize of a windowed image-level branch.
    folded: convolutions have biases and there is no BatchNorm.
    norm_epsilon, norm_momentum: of the BatchNorms.
  """

  channels: int = 256
  rates: tuple[int, ...] = (6, 12, 18)
  separable: bool = False
  image_pooling: bool = True
  pool_window: tuple[int, ...] = ()
  concat_order: Order = "pool_first"
  fuse_kernel: int = 1
  align_corners: bool = False
  folded: bool = False
  norm_epsilon: float = 1e-5
  norm_momentum: float = 0.1
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
    norm = dict(epsilon=self.norm_epsilon, momentum=self.norm_momentum, dtype=self.dtype)
    fields = dict(norm, folded=self.folded)
    pooled = None
    if self.image_pooling:
      branch = ConvNorm(self.channels, **fields, name="image_pool")
      pooled = branch(self._pool(x), train=train)
      if pooled.shape[1:3] != (1, 1):
        pooled = resize(pooled, x.shape[1:3], align_corners=self.align_corners)
    branches = [ConvNorm(self.channels, **fields, name="branch0")(x, train=train)]
    for i, rate in enumerate(self.rates, start=1):
      if self.separable:
        branch = SeparableConv(self.channels, dilation=rate, **fields, name=f"branch{i}")
      else:
        branch = ConvNorm(self.channels, 3, 1, rate, **fields, name=f"branch{i}")
      branches.append(branch(x, train=train))
    fuse = JoinConv(
      self.channels, self.fuse_kernel, self.concat_order, self.folded, dtype=self.dtype, name="fuse"
    )
    x = fuse(pooled, branches)
    if self.folded:
      return nn.relu(x)
    slope = jnp.zeros(x.shape[-1])
    return BatchNorm(**norm, name="fuse_norm")(x, train=train, slope=slope)

  def _pool(self, x: Array) -> Array:
    window = [min(a, n) for a, n in zip(self.pool_window or x.shape[1:3], x.shape[1:3], strict=True)]
    if tuple(window) == x.shape[1:3]:
      return x.mean((1, 2), dtype=jnp.float32, keepdims=True).astype(x.dtype)
    return nn.avg_pool(spatial.whole(x), tuple(window))


class JoinConv(nn.Module):
  """A convolution over the concat of the branches: `kernel` (s, s, Σ channels, features), `bias`."""

  features: int
  kernel_size: int = 1
  concat_order: Order = "pool_first"
  use_bias: bool = False
  kernel_init: Initializer = fan_out_normal()
  dtype: Any = None

  @nn.compact
  def __call__(
    self, pooled: Float[Array, "b _ _ p"] | None, branches: list[Float[Array, "b h w _"]]
  ) -> Float[Array, "b h w k"]:
    """Pooled is the image-level branch as one vector (1×1), as a map of the others' size, or absent."""
    size, width = self.kernel_size, sum(x.shape[-1] for x in branches)
    extra = 0 if pooled is None else pooled.shape[-1]
    kernel = self.param("kernel", self.kernel_init, (size, size, width + extra, self.features))
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
    kernel, bias, pooled, *branches = nn.dtypes.promote_dtype(
      kernel, bias, pooled, *branches, dtype=self.dtype
    )
    first = 0 if self.concat_order == "pool_last" else extra
    last = width if self.concat_order == "pool_last" else 0
    y = join_conv(pooled, branches, kernel[:, :, last : last + extra], kernel[:, :, first : first + width])
    return add_bias(y, bias)


def join_conv_reference(
  pooled: Float[Array, "b _ _ p"] | None,
  branches: list[Float[Array, "b h w _"]],
  pooled_kernel: Float[Array, "s s p k"],
  kernel: Float[Array, "s s _ k"],
) -> Float[Array, "b h w k"]:
  """The definition: repeat the image-level vector, concatenate, convolve with zeros around."""
  if pooled is not None:
    pooled = jnp.broadcast_to(pooled, (*branches[0].shape[:3], pooled.shape[-1]))
    branches, kernel = [pooled, *branches], jnp.concatenate([pooled_kernel, kernel], 2)
  return _conv(jnp.concatenate(branches, -1), kernel)


@defined_by(join_conv_reference)
def join_conv(
  pooled: Float[Array, "b _ _ p"] | None,
  branches: list[Float[Array, "b h w _"]],
  pooled_kernel: Float[Array, "s s p k"],
  kernel: Float[Array, "s s _ k"],
) -> Float[Array, "b h w k"]:
  """Equal to `join_conv_reference`.

  Args:
    pooled: image-level branch, 1×1 or as large as the others; None where there is none.
    branches: the other maps, in the order of their channels in `kernel`.
    pooled_kernel: the part of the kernel that reads `pooled`.
    kernel: the part that reads `branches`.
  """
  h, w = branches[0].shape[1:3]
  if kernel.shape[0] == 1:
    starts = np.cumsum([0, *(x.shape[-1] for x in branches)])
    y = sum(x @ kernel[0, 0, a : a + x.shape[-1]] for a, x in zip(starts[:-1], branches, strict=True))
    if pooled is None:
      return y
    return y + pooled @ pooled_kernel[0, 0]
  if pooled is None or pooled.shape[1:3] != (1, 1) or (h, w) == (1, 1):
    return join_conv_reference(pooled, branches, pooled_kernel, kernel)
  y = _conv(jnp.concatenate(branches, -1), kernel)
  # Inside the map every tap reads the vector; at the borders some read the zeros around it.
  taps = jnp.einsum("bp,ijpk->bijk", pooled[:, 0, 0], pooled_kernel)
  rows, columns = (jnp.asarray(_reads(n, kernel.shape[0]), y.dtype) for n in (h, w))
  return y + jnp.einsum("hi,bijk,wj->bhwk", rows, taps, columns)


def _conv(x: Array, kernel: Array) -> Array:
  if kernel.shape[0] == 1:
    return x @ kernel[0, 0]
  side = (kernel.shape[0] - 1) // 2

  def apply(x, kernel, rows):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), (rows, (side, side)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  return spatial.windowed(apply, x, (kernel,), size=kernel.shape[0], padding=(side, side))


def _reads(n: int, size: int) -> np.ndarray:
  """(n, size): 1 where a tap of an odd kernel reads a pixel of an axis of n, 0 where it reads padding."""
  position = np.arange(n)[:, None] + np.arange(size) - (size - 1) // 2
  return ((position >= 0) & (position < n)).astype(np.float32)
