"""Stochastic depth (https://arxiv.org/abs/1603.09382): a residual branch is dropped for whole samples."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# A number, or a traced scalar where blocks of different rates are one loop.
Rate = float | Float[Array, ""]


def DropPath(rate: Rate, *, deterministic: bool) -> nn.Module:
  """One draw a sample, from the "dropout" key; the survivors are divided by their probability."""
  if isinstance(rate, (int, float)):
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=deterministic)
  return _TracedDropPath(rate, deterministic)


class _TracedDropPath(nn.Module):
  """`nn.Dropout` decides in Python whether its rate is 0, which a traced one does not allow."""

  rate: Rate
  deterministic: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    if self.deterministic:
      return x
    kept = 1.0 - self.rate
    mask = jax.random.bernoulli(self.make_rng("dropout"), kept, (x.shape[0], 1, 1, 1))
    return jnp.where(mask, x / kept.astype(x.dtype), 0)


def drop_path_rates(rate: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
  """Rates of every stage's blocks: from 0 at the network's first block, linearly to `rate` at its last."""
  last = max(sum(depths) - 1, 1)
  rates, first = [], 0
  for depth in depths:
    rates.append(tuple(rate * i / last for i in range(first, first + depth)))
    first += depth
  return tuple(rates)
