"""MSCAN, the encoder of SegNeXt (https://arxiv.org/abs/2209.08575).

Written from the paper; where paper and published weights differ, the weights' layout is
followed (tests/encoders/test_mscan.py compares). Every ablation of the paper
is a field.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.errors import UserError
from jaxseg.layers import stage
from jaxseg.layers.conv import Conv, ConvWeights, DepthwiseConv, Size, fan_out_normal
from jaxseg.layers.drop_path import Rate, drop_path_rates, drop_paths
from jaxseg.layers.mix_ffn import mix_ffn
from jaxseg.layers.norm import BatchNorm, LayerNorm
from jaxseg.layers.stage import Scan
from jaxseg.layers.strips import multi_scale_strips
from jaxseg.ops.gelu import gelu
from jaxseg.ops.msca import msca_halo
from jaxseg.types import AnyArray, Features, Image

_conv = partial(Conv, kernel_init=fan_out_normal())

Attention = Literal["msca", "large_kernel", "none"]


def _depthwise(channels: int, kernel_size: Size, **fields) -> DepthwiseConv:
  return DepthwiseConv(kernel_size, kernel_init=fan_out_normal(groups=channels), **fields)


class MultiScaleConvAttention(CheckedModule):
  """MSCA: a 5×5 and pairs of strips, summed, mixed by a 1×1, as a gate on the input.

  Attributes:
    branches: strip lengths; each is a 1×k, then a k×1 convolution of the 5×5's output.
    mix: the 1×1 convolution over the summed branches.
    gate: multiply the input by the result; otherwise the result is the output.
  """

  branches: tuple[int, ...] = (7, 11, 21)
  mix: bool = True
  gate: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b h w c"]:
    x = jnp.asarray(x)
    even = [k for k in self.branches if k % 2 == 0]
    if even:
      raise UserError(f"branches={self.branches} has even lengths {even}; a strip is centred, use odd ones")
    c = x.shape[-1]
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)

    def weights(name: str, size: tuple[int, int]):
      return ConvWeights((*size, 1, c), fan_out_normal(groups=c), x.dtype, name=name)()

    square = weights("local", (5, 5))
    strips = [(weights(f"row{k}", (1, k)), weights(f"column{k}", (k, 1))) for k in self.branches]
    y = multi_scale_strips(x, square, strips)
    if self.mix:
      y = _conv(c, dtype=self.dtype, name="mix")(y)
    return x * y if self.gate else y


class LargeKernelAttention(nn.Module):
  """The gate of VAN (https://arxiv.org/abs/2202.09741): 5×5, then 7×7 dilated by 3, then a 1×1."""

  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    c = x.shape[-1]
    y = _depthwise(c, 5, dtype=self.dtype, name="local")(x)
    y = _depthwise(c, 7, dilation=3, dtype=self.dtype, name="dilated")(y)
    return x * _conv(c, dtype=self.dtype, name="mix")(y)


class Block(CheckedModule):
  """Attention and feed-forward residual branches, each normalised first and scaled by a learned vector.

  The attention branch has a shortcut of its own, around its two 1×1 convolutions: the
  normalised input is added before the layer scale.
  """

  ffn_ratio: int
  drop_path_rate: Rate = 0.0
  dropout_rate: float = 0.0
  layer_scale: float = 1e-2
  attention: Attention = "msca"
  branches: tuple[int, ...] = (7, 11, 21)
  mix: bool = True
  gate: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
    c = x.shape[-1]
    conv = partial(_conv, dtype=self.dtype)
    drop_attention, drop_ffn = drop_paths(self.drop_path_rate, deterministic=not train)

    y = shortcut = BatchNorm(dtype=self.dtype, name="norm1")(x, train=train)
    y = gelu(conv(c, name="proj_in")(y))
    if self.attention == "msca":
      y = MultiScaleConvAttention(self.branches, self.mix, self.gate, dtype=self.dtype, name="attention")(y)
    elif self.attention == "large_kernel":
      y = LargeKernelAttention(dtype=self.dtype, name="attention")(y)
    y = conv(c, name="proj_out")(y) + shortcut
    x = x + drop_attention(self._scaled("layer_scale1", y))

    y = BatchNorm(dtype=self.dtype, name="norm2")(x, train=train)
    y = self._feed_forward(y, train)
    return x + drop_ffn(self._scaled("layer_scale2", y))

  def _feed_forward(self, x: Array, train: bool) -> Array:
    c, hidden = x.shape[-1], x.shape[-1] * self.ffn_ratio

    def weights(name: str, *shape: int, groups: int = 1):
      return ConvWeights(shape, fan_out_normal(groups=groups), x.dtype, name=name)()

    (fc1, bias1), (fc2, bias2) = weights("fc1", 1, 1, c, hidden), weights("fc2", 1, 1, hidden, c)
    dwconv = weights("dwconv", 3, 3, 1, hidden, groups=hidden)
    dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
    drop = dropout if train and self.dropout_rate else None
    return mix_ffn(x, (fc1[0, 0], bias1), dwconv, (fc2[0, 0], bias2), drop=drop)

  def _scaled(self, name: str, y: Array) -> Array:
    scale = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],))
    return scale.astype(y.dtype) * y


class Stage(stage.Stage, kw_only=True):
  """A strided embedding (in the stem two), blocks, LayerNorm. Further fields are `layers.stage.Stage`'s.

  Attributes:
    dim: channels.
    stem: first a strided convolution to half the channels, BatchNorm and GELU.
  """

  dim: int
  stem: bool = False

  def embed(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo d"]:
    """One or two strided 3×3, each with BatchNorm."""
    strided = partial(_conv, kernel_size=3, strides=2, dtype=self.dtype)
    if self.stem:
      x = strided(self.dim // 2, name="stem_conv")(x)
      x = gelu(BatchNorm(dtype=self.dtype, name="stem_norm")(x, train=train))
    x = strided(self.dim, name="embed_conv")(x)
    return BatchNorm(dtype=self.dtype, name="embed_norm")(x, train=train)

  def finish(self, embedded: Float[Array, "b h w d"], y: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
    """The last block's map, normalised."""
    del embedded
    return LayerNorm(dtype=self.dtype, name="norm")(y)


class MSCAN(CheckedModule):
  """Four stages at strides 4, 8, 16 and 32; each feature is the stage's LayerNorm output.

  Attributes:
    dims: channels of the stages.
    depths: their blocks.
    ffn_ratios: width of the feed-forward over `dims`.
    drop_path_rate: of the last block; the rates rise linearly from 0 over all stages.
    dropout_rate: of single elements inside the feed-forward.
    layer_scale: initial value of the residual branches' scales.
    attention: MSCA, VAN's large kernel in its place, or neither.
    branches: strip lengths of MSCA, any subset of the paper's (7, 11, 21) or others, odd.
    mix: MSCA's 1×1 convolution.
    gate: MSCA's product with its input.
    remat: compute a block's intermediates again in the backward pass: memory for time.
    scan: run equal blocks as one loop, which compiles faster; see `layers.stage.run_blocks`.
    in_channels: of the image.
  """

  dims: tuple[int, int, int, int] = (32, 64, 160, 256)
  depths: tuple[int, int, int, int] = (3, 3, 5, 2)
  ffn_ratios: tuple[int, int, int, int] = (8, 8, 4, 4)
  drop_path_rate: float = 0.1
  dropout_rate: float = 0.0
  layer_scale: float = 1e-2
  attention: Attention = "msca"
  branches: tuple[int, ...] = (7, 11, 21)
  mix: bool = True
  gate: bool = True
  remat: bool = False
  scan: Scan = "auto"
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return ("stage1", "stage2", "stage3", "stage4")

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    rates = drop_path_rates(self.drop_path_rate, self.depths)
    features = {}
    x = jnp.asarray(image, self.dtype)
    for i, dim in enumerate(self.dims):
      block = partial(
        Block,
        self.ffn_ratios[i],
        dropout_rate=self.dropout_rate,
        layer_scale=self.layer_scale,
        attention=self.attention,
        branches=self.branches,
        mix=self.mix,
        gate=self.gate,
        dtype=self.dtype,
      )
      x = features[f"stage{i + 1}"] = Stage(
        dim=dim,
        block=block,
        num_blocks=self.depths[i],
        drop_path_rates=rates[i],
        strides=4 if i == 0 else 2,
        stem=i == 0,
        reach=self._reach(),
        remat=self.remat,
        scan=self.scan,
        dtype=self.dtype,
        name=f"stage{i + 1}",
      )(x, train=train)
    return features

  def _reach(self) -> int:
    match self.attention:
      case "msca":
        return msca_halo(5, self.branches)
      case "large_kernel":
        return 9  # 7×7 at rate 3
      case _:
        return 1


_WIDE = (64, 128, 320, 512)
mscan_tiny = partial(MSCAN)
mscan_small = partial(MSCAN, dims=_WIDE, depths=(2, 2, 4, 2))
mscan_base = partial(MSCAN, dims=_WIDE, depths=(3, 3, 12, 3))
mscan_large = partial(MSCAN, dims=_WIDE, depths=(3, 5, 27, 3), drop_path_rate=0.3)
