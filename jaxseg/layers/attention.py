"""Attention over feature maps: one softmax kernel, and the spatial reduction of MiT."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.conv import Conv, Dense, fan_out_normal
from jaxseg.layers.norm import LayerNorm
from jaxseg.layers.upsampled import batch_shards, for_own_images
from jaxseg.ops import attention as ops
from jaxseg.ops.definition import defined_by
from jaxseg.types import AnyArray

_trunc_normal = nn.initializers.truncated_normal(0.02)


@defined_by(ops.attention_reference)
def attention(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
) -> Float[Array, "b n heads d"]:
  """softmax(query · keyᵀ / √d) · value, the softmax in float32, the result in the inputs' dtype."""
  images = -(-len(query) // batch_shards())
  return ops.attention(query, key, value, images=images, on_devices=for_own_images)


class SpatialReductionAttention(nn.Module):
  """Self-attention over pixels whose keys and values come from a coarser map.

  MiT's efficient attention (https://arxiv.org/abs/2105.15203, §3.1; first in PVT): a
  convolution of size and stride `reduction`, then LayerNorm, makes the coarser map. Rows
  and columns left over by the stride are not read, as in the reference.

  Attributes:
    num_heads: divides the channels.
    reduction: 1 keeps keys and values at full resolution, without the convolution.
    epsilon: of the LayerNorm.
  """

  num_heads: int
  reduction: int = 1
  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b h w c"]:
    x = jnp.asarray(x)
    b, h, w, c = x.shape

    def dense(name):
      return Dense(c, kernel_init=_trunc_normal, dtype=self.dtype, name=name)

    source = x
    if self.reduction > 1:
      source = Conv(
        c,
        self.reduction,
        strides=self.reduction,
        padding=0,
        kernel_init=fan_out_normal(),
        dtype=self.dtype,
        name="reduce",
      )(x)
      source = LayerNorm(self.epsilon, dtype=self.dtype, name="reduce_norm")(source)
    source = spatial.whole(source)  # where rows are split, every device needs all keys and values
    heads = (self.num_heads, c // self.num_heads)
    query = dense("query")(x).reshape(b, h, w, *heads)
    key, value = (dense(name)(source).reshape(b, -1, *heads) for name in ("key", "value"))

    def attend(query, key, value):
      return attention(query.reshape(b, -1, *heads), key, value).reshape(query.shape)

    query = query.reshape(b, h, w, *heads)
    scores = b // batch_shards() * self.num_heads * h * w * key.shape[1] // spatial.shards(h)
    if spatial.shards(h) > 1 and ops.has_many_scores(scores):
      # Each device for the rows of its own: the queries' parts must not cross the seams.
      found = spatial.on_rows(attend, query, (key, value))
    else:
      found = attend(query, key, value)
    return dense("out")(found.reshape(b, h, w, c))
