"""Attention over feature maps: one softmax kernel, and the spatial reduction of MiT."""

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


def attention(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
) -> Float[Array, "b n heads d"]:
  """softmax(query · keyᵀ / √d) · value, the softmax in float32, the result in the inputs' dtype."""
  return jax.nn.dot_product_attention(query, key, value)


def _constant_bias(x, kernel, bias, *, dtype):
  """Same numbers; the derivative by the bias is 0.

  It is 0 for the bias of keys, which adds one number to all scores of a query and so changes no softmax.
  Computed, it would be rounding noise, of which Adam makes steps of full size.
  """
  return nn.dtypes.promote_dtype(x, kernel, lax.stop_gradient(bias), dtype=dtype)


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

    def dense(name, promote=nn.dtypes.promote_dtype):
      return nn.Dense(c, kernel_init=_trunc_normal, dtype=self.dtype, promote_dtype=promote, name=name)

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
    query = dense("query")(x).reshape(b, -1, self.num_heads, c // self.num_heads)
    keys_and_values = dense("key", _constant_bias)(source), dense("value")(source)
    key, value = (x.reshape(b, -1, *query.shape[2:]) for x in keys_and_values)
    return dense("out")(attention(query, key, value).reshape(b, h, w, c))
