"""Stochastic depth (https://arxiv.org/abs/1603.09382): a residual branch is dropped for whole samples."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# A number, or a traced scalar where blocks of different rates are one loop.
Rate = float | Float[Array, ""]


class DropPath(nn.Module):
  """One draw a sample, from the "dropout" key; the survivors are divided by their probability.

  The rate ends in one factor a sample, made apart from what it is multiplied with: XLA compiles what equal
  blocks do once, and constants of their rates would make each another program (four MiT blocks' training
  step on TPU: 103 s of processor to compile, and 61 so).
  """

  rate: Rate
  deterministic: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    if self.deterministic or (isinstance(self.rate, (int, float)) and self.rate == 0):
      return x
    kept = 1.0 - self.rate
    mask = jax.random.bernoulli(self.make_rng("dropout"), kept, (x.shape[0], 1, 1, 1))
    factor = lax.optimization_barrier(jnp.where(mask, 1 / jnp.float32(kept), 0.0))
    return (x * factor).astype(x.dtype)


def drop_path_rates(rate: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
  """Rates of every stage's blocks: from 0 at the network's first block, linearly to `rate` at its last."""
  last = max(sum(depths) - 1, 1)
  rates, first = [], 0
  for depth in depths:
    rates.append(tuple(rate * i / last for i in range(first, first + depth)))
    first += depth
  return tuple(rates)
