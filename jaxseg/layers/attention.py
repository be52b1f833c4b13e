"""Attention over feature maps: one softmax kernel, and the spatial reduction of MiT."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.conv import Conv, fan_out_normal
from jaxseg.types import AnyArray

_trunc_normal = nn.initializers.truncated_normal(0.02)
# Scores of one image that are held at once, 2 GiB of float32. Crops of published recipes stay far below;
# 4096x8192 pixels have 7e10 in the first stage of MiT.
_SCORES = 2**29


def attention(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
) -> Float[Array, "b n heads d"]:
  """softmax(query · keyᵀ / √d) · value, the softmax in float32, the result in the inputs' dtype."""
  return jax.nn.dot_product_attention(query, key, value)


class SpatialReductionAttention(nn.Module):
  """Self-attention over pixels whose keys and values come from a coarser map.

  MiT's efficient attention (https://arxiv.org/abs/2105.15203, §3.1; first in PVT): a
  convolution of size and stride `reduction`, then LayerNorm, makes the coarser map. Rows
  and columns left over by the stride are not read, as in the reference. Of a picture so large
  that its scores would not fit, the columns are taken part after part.

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
      return nn.Dense(c, kernel_init=_trunc_normal, dtype=self.dtype, name=name)

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
      source = nn.LayerNorm(self.epsilon, use_fast_variance=False, dtype=self.dtype, name="reduce_norm")(
        source
      )
    source = spatial.whole(source)  # where rows are split, every device needs all keys and values
    heads = (self.num_heads, c // self.num_heads)
    query = dense("query")(x).reshape(b, h, w, *heads)
    key, value = (dense(name)(source).reshape(b, -1, *heads) for name in ("key", "value"))

    parts = _parts(w, math.ceil(h * w * key.shape[1] * self.num_heads / _SCORES))
    if parts == 1:
      found = attention(query.reshape(b, -1, *heads), key, value)
      return dense("out")(found.reshape(b, h, w, c))
    # The gradients of keys and values are summed over the parts, which bfloat16 is too coarse for.
    wide_key, wide_value = key.astype(jnp.float32), value.astype(jnp.float32)

    def attend(query):
      all_of = (x.astype(query.dtype) for x in (wide_key, wide_value))
      return attention(query.reshape(b, -1, *heads), *all_of).reshape(query.shape)

    # By columns, since rows may lie on several devices.
    columns = jnp.moveaxis(query.reshape(b, h, parts, w // parts, *heads), 2, 0)
    found = jnp.moveaxis(lax.map(jax.checkpoint(attend), columns), 0, 2)
    return dense("out")(found.reshape(b, h, w, c))


def _parts(width: int, wanted: int) -> int:
  """The smallest divisor of the width that is at least as wanted."""
  return next(n for n in range(max(min(wanted, width), 1), width + 1) if width % n == 0)
