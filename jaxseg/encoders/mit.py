"""Mix Transformer (MiT), the encoder of SegFormer (https://arxiv.org/abs/2105.15203).

Written from the paper; where its Table 6 and the published weights differ (feed-forward
ratio 4 in every stage, four blocks in B2's and B3's second), the weights are
followed. The published implementations differ in the epsilons of their LayerNorms only:
that is the field `epsilons`.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.errors import UserError
from jaxseg.layers import stage
from jaxseg.layers.attention import SpatialReductionAttention
from jaxseg.layers.conv import Conv, ConvWeights, fan_out_normal
from jaxseg.layers.drop_path import Rate, drop_path_rates, drop_paths
from jaxseg.layers.mix_ffn import mix_ffn
from jaxseg.layers.norm import LayerNorm
from jaxseg.layers.resize import resize
from jaxseg.layers.stage import Scan
from jaxseg.ops.bias import add_bias
from jaxseg.ops.gelu import gelu
from jaxseg.types import Features, Image

_trunc_normal = nn.initializers.truncated_normal(0.02)

Position = Literal["mix_ffn", "embedding"]


class Epsilons(NamedTuple):
  """Of the LayerNorms: in blocks, after the patch embedding, after the spatial reduction, at stage ends."""

  block: float
  embed: float
  reduction: float
  stage: float


EPSILONS = {
  "nvlabs": Epsilons(1e-6, 1e-5, 1e-5, 1e-6),
  "mmseg": Epsilons(1e-6, 1e-6, 1e-6, 1e-6),
  "hf": Epsilons(1e-5, 1e-5, 1e-5, 1e-5),
}


class FeedForward(nn.Module):
  """Mix-FFN: linear, 3×3 depthwise convolution, GELU, linear. The convolution tells where a pixel is.

  Attributes:
    ratio: hidden width over the input's.
    conv: False leaves the depthwise convolution out.
    dropout_rate: of single elements, after the activation and at the end.
  """

  ratio: int = 4
  conv: bool = True
  dropout_rate: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
    c, hidden = x.shape[-1], x.shape[-1] * self.ratio
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)

    def weights(name: str, *shape: int, init: Any = _trunc_normal):
      return ConvWeights(shape, init, x.dtype, name=name)()

    fc1, fc2 = weights("fc1", c, hidden), weights("fc2", hidden, c)
    dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
    if not self.conv:
      y = dropout(gelu(add_bias(x @ fc1[0], fc1[1])))
      return dropout(add_bias(y @ fc2[0], fc2[1]))
    dwconv = weights("dwconv", 3, 3, 1, hidden, init=fan_out_normal(groups=hidden))
    return mix_ffn(x, fc1, dwconv, fc2, drop=dropout if train and self.dropout_rate else None)


class Block(nn.Module):
  """Attention and feed-forward, each normalised first, each a residual."""

  num_heads: int
  reduction: int
  ffn_ratio: int
  epsilons: Epsilons
  drop_path_rate: Rate = 0.0
  dropout_rate: float = 0.0
  ffn_conv: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
    norm = partial(LayerNorm, self.epsilons.block, dtype=self.dtype)
    drop_attention, drop_ffn = drop_paths(self.drop_path_rate, deterministic=not train)
    y = norm(name="norm1")(x)
    y = SpatialReductionAttention(
      self.num_heads, self.reduction, self.epsilons.reduction, dtype=self.dtype, name="attention"
    )(y)
    x = x + drop_attention(nn.Dropout(self.dropout_rate, deterministic=not train)(y))
    y = norm(name="norm2")(x)
    y = FeedForward(self.ffn_ratio, self.ffn_conv, self.dropout_rate, dtype=self.dtype, name="ffn")(
      y, train=train
    )
    return x + drop_ffn(y)


class Stage(stage.Stage, kw_only=True):
  """Overlapping patch embedding, blocks, LayerNorm. Further fields are those of `layers.stage.Stage`.

  Attributes:
    dim: channels.
    patch_size: of the embedding.
    epsilons: of the LayerNorms.
    position_size: rows and columns of a learned position embedding, resized to the map; None has none.
  """

  dim: int
  patch_size: int
  epsilons: Epsilons
  position_size: tuple[int, int] | None = None

  def embed(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo d"]:
    """The patches' map, normalised, with the position where there is one."""
    del train
    init = dict(kernel_init=fan_out_normal(), dtype=self.dtype)
    x = Conv(self.dim, self.patch_size, strides=self.strides, **init, name="embed")(x)
    x = LayerNorm(self.epsilons.embed, dtype=self.dtype, name="embed_norm")(x)
    if self.position_size is None:
      return x
    position = self.param("position", _trunc_normal, (*self.position_size, self.dim))
    return x + resize(position, x.shape[1:3]).astype(x.dtype)

  def finish(self, embedded: Float[Array, "b h w d"], y: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
    """The last block's map, normalised."""
    del embedded
    return LayerNorm(self.epsilons.stage, dtype=self.dtype, name="norm")(y)


class MiT(CheckedModule):
  """Four stages at strides 4, 8, 16 and 32; each feature is the stage's LayerNorm output.

  Attributes:
    dims: channels of the stages.
    depths: their blocks.
    num_heads: attention heads of the stages.
    reductions: strides of the stages' key and value maps.
    ffn_ratios: width of the feed-forward over `dims`.
    drop_path_rate: of the last block; the rates rise linearly from 0 over all stages.
    dropout_rate: of single elements, after the attention and inside the feed-forward.
    epsilons: of the LayerNorms, as published by NVlabs, mmsegmentation or Hugging Face.
    position: "mix_ffn", or the paper's ablation: a learned embedding for each stage, resized to the map, and
      no convolution in the feed-forward.
    position_size: image size (rows, columns) for which the embeddings are learned.
    remat: compute a block's intermediates again in the backward pass: memory for time.
    scan: run equal blocks as one loop, which compiles faster; see `layers.stage.run_blocks`.
    images_at_once: of a device's images that go through a stage's blocks together, whose intermediates are
      computed again in the backward pass; 0 takes all and keeps them. One at a time is for TPUs.
    in_channels: of the image.
  """

  dims: tuple[int, int, int, int] = (32, 64, 160, 256)
  depths: tuple[int, int, int, int] = (2, 2, 2, 2)
  num_heads: tuple[int, int, int, int] = (1, 2, 5, 8)
  reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
  ffn_ratios: tuple[int, int, int, int] = (4, 4, 4, 4)
  drop_path_rate: float = 0.1
  dropout_rate: float = 0.0
  epsilons: Literal["nvlabs", "mmseg", "hf"] = "nvlabs"
  position: Position = "mix_ffn"
  position_size: tuple[int, int] = (224, 224)
  remat: bool = False
  scan: Scan = "auto"
  images_at_once: int = 0
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return ("stage1", "stage2", "stage3", "stage4")

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    epsilons = EPSILONS[self.epsilons]
    rates = drop_path_rates(self.drop_path_rate, self.depths)
    features = {}
    x = jnp.asarray(image, self.dtype)
    for i, dim in enumerate(self.dims):
      if dim % self.num_heads[i]:
        raise UserError(f"dims[{i}]={dim} is not a multiple of num_heads[{i}]={self.num_heads[i]}")
      block = partial(
        Block,
        self.num_heads[i],
        self.reductions[i],
        self.ffn_ratios[i],
        epsilons,
        dropout_rate=self.dropout_rate,
        ffn_conv=self.position == "mix_ffn",
        dtype=self.dtype,
      )
      rows, columns = (max(size >> (i + 2), 1) for size in self.position_size)
      part = Stage(
        dim=dim,
        block=block,
        num_blocks=self.depths[i],
        drop_path_rates=rates[i],
        patch_size=7 if i == 0 else 3,
        strides=4 if i == 0 else 2,
        epsilons=epsilons,
        position_size=None if self.position == "mix_ffn" else (rows, columns),
        # Where rows are spread over devices, each needs whole windows of the spatial reduction.
        multiple=self.reductions[i],
        remat=self.remat,
        scan=self.scan,
        dtype=self.dtype,
        name=f"stage{i + 1}",
      )
      x = features[f"stage{i + 1}"] = stage.by_images(part, x, train=train, images=self.images_at_once)
    return features


_WIDE = (64, 128, 320, 512)
mit_b0 = partial(MiT)
mit_b1 = partial(MiT, dims=_WIDE)
mit_b2 = partial(MiT, dims=_WIDE, depths=(3, 4, 6, 3))
mit_b3 = partial(MiT, dims=_WIDE, depths=(3, 4, 18, 3))
mit_b4 = partial(MiT, dims=_WIDE, depths=(3, 8, 27, 3))
mit_b5 = partial(MiT, dims=_WIDE, depths=(3, 6, 40, 3))
