"""Global context over a feature map: the alternatives to NMF that SegNeXt's paper compares (Table 5).

Each returns the context alone, the shape of its input; the caller adds the residual.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.attention import attention
from jaxseg.layers.conv import Conv, fan_out_normal
from jaxseg.types import AnyArray


class NonLocal(nn.Module):
  """Embedded-Gaussian non-local block without its output convolution (https://arxiv.org/abs/1711.07971).

  Three 1×1 convolutions to half the channels, one attention over all pixels, scaled by
  1 / √(channels / 2); the output has `channels / 2`.
  """

  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b h w d"]:
    x = jnp.asarray(x)
    b, h, w, c = x.shape
    parts = []
    for name in ("query", "key", "value"):
      conv = Conv(c // 2, kernel_init=fan_out_normal(), dtype=self.dtype, name=name)
      # Where rows are split, every device needs all keys and values.
      part = conv(x) if name == "query" else spatial.whole(conv(x))
      parts.append(part.reshape(b, h * w, 1, c // 2))
    return attention(*parts).reshape(b, h, w, c // 2)


class CrissCross(nn.Module):
  """Recurrent criss-cross attention (https://arxiv.org/abs/1811.11721).

  Every pixel attends to its row and its column; the second of `recurrence` passes, with the
  same parameters, lets it see all others. `gamma`, initially 0, scales each pass.
  """

  recurrence: int = 2
  reduction: int = 8
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, "b h w c"]) -> Float[Array, "b h w c"]:
    x = jnp.asarray(x)
    c, h = x.shape[-1], x.shape[1]
    narrow = max(c // self.reduction, 1)
    query, key, value = (
      Conv(width, kernel_init=fan_out_normal(), dtype=self.dtype, name=name)
      for name, width in (("query", narrow), ("key", narrow), ("value", c))
    )
    gamma = self.param("gamma", nn.initializers.zeros_init(), ())
    # The pixel itself is in its row and in its column: it counts once.
    itself = jnp.where(jnp.eye(h, dtype=bool), -jnp.inf, 0.0)[None, :, None, :]
    for _ in range(self.recurrence):
      q, k, v = query(x), key(x), value(x)
      columns = spatial.whole(k), spatial.whole(v)
      column = jnp.einsum("bhwd,bgwd->bhwg", q, columns[0], preferred_element_type=jnp.float32) + itself
      row = jnp.einsum("bhwd,bhvd->bhwv", q, k, preferred_element_type=jnp.float32)
      weights = nn.softmax(jnp.concatenate([column, row], -1)).astype(v.dtype)
      y = jnp.einsum("bhwg,bgwc->bhwc", weights[..., :h], columns[1])
      y = y + jnp.einsum("bhwv,bhvc->bhwc", weights[..., h:], v)
      x = x + gamma.astype(x.dtype) * y
    return x


class ExpectationMaximization(nn.Module):
  """EM attention (https://arxiv.org/abs/1907.13426): pixels rebuilt from a few bases fitted to the image.

  The E-step assigns pixels to bases by softmax, the M-step takes the weighted mean of the
  pixels and scales it to unit norm; no gradient passes through the iterations. The bases
  `buffers/bases` (c, rank) start every image and follow the batch's mean fit in training,
  where that collection is mutable. float32 throughout.
  """

  rank: int = 64
  steps: int = 3
  momentum: float = 0.1

  @nn.compact
  def __call__(self, x: Float[AnyArray, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
    x = jnp.asarray(x)
    b, h, w, c = x.shape

    def init():
      return _unit_norm(jax.random.normal(self.make_rng("params"), (c, self.rank)))

    stored = self.variable("buffers", "bases", init)
    pixels = x.reshape(b, h * w, c).astype(jnp.float32)

    def step(_, bases):
      weights = nn.softmax(pixels @ bases)
      weights = weights / (weights.sum(1, keepdims=True) + 1e-6)
      return _unit_norm(jnp.einsum("bnc,bnr->bcr", pixels, weights))

    start = jnp.broadcast_to(stored.value, (b, c, self.rank))
    bases = lax.stop_gradient(lax.fori_loop(0, self.steps, step, start))
    if train and not self.is_initializing() and self.is_mutable_collection("buffers"):
      fit = _unit_norm(bases.mean(0))
      stored.value = (1 - self.momentum) * stored.value + self.momentum * fit
    y = nn.softmax(pixels @ bases) @ bases.mT
    return nn.relu(y).reshape(b, h, w, c).astype(x.dtype)


def _unit_norm(bases):
  return bases / (jnp.linalg.norm(bases, axis=-2, keepdims=True) + 1e-6)
