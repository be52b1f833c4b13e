"""Stochastic depth (https://arxiv.org/abs/1603.09382): a residual branch is dropped for whole samples."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxseg.types import Dim

# Of a block: a probability, traced where blocks of different rates are one loop; or what its stage drew, a
# factor for each of its branches and each sample.
Rate = float | Float[Array, ""] | Float[Array, "branches b"]


class DropPath(nn.Module):
  """One draw a sample, from the "dropout" key; the survivors are divided by their probability."""

  rate: float | Float[Array, ""]
  deterministic: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    if self.deterministic or (isinstance(self.rate, (int, float)) and self.rate == 0):
      return x
    return _scaled(draw_factors(self.make_rng("dropout"), [self.rate], x.shape[0], branches=1)[0][0], x)


def drop_paths(rate: Rate, *, deterministic: bool) -> tuple[Callable[[Array], Array], ...]:
  """What a block does to each of its two branches; for use inside of a module's compact method."""
  if jnp.ndim(rate):
    return tuple(functools.partial(_scaled, factors) for factors in rate)
  return (DropPath(rate, deterministic=deterministic),) * 2


def draw_factors(
  key: Key[Array, ""], rates: Sequence[float | Float[Array, ""]], batch: Dim, *, branches: int = 2
) -> list[Any]:
  """For each block 0.0 where it drops nothing, or (branches, batch): 0 for the dropped, else 1 / (1 - rate).

  One draw for all of a stage: each key of its own would be a hundred instructions of a TPU's program. The
  factors are made apart from what they are multiplied with: XLA compiles what equal blocks do once, and
  constants of their rates would make each another program (four MiT blocks' training step on TPU: 103 s of
  processor to compile, and 61 so).
  """
  kept = jnp.stack([1.0 - jnp.asarray(rate, jnp.float32) for rate in rates])[:, None, None]
  survives = jax.random.uniform(key, (len(rates), branches, batch)) < kept
  factors = lax.optimization_barrier(jnp.where(survives, 1 / kept, 0.0))
  drops = [not (isinstance(rate, (int, float)) and rate == 0) for rate in rates]
  return [factors[i] if drop else 0.0 for i, drop in enumerate(drops)]


def _scaled(factors: Float[Array, " b"], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  return (x * factors[:, None, None, None]).astype(x.dtype)


def drop_path_rates(rate: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
  """Rates of every stage's blocks: from 0 at the network's first block, linearly to `rate` at its last."""
  last = max(sum(depths) - 1, 1)
  rates, first = [], 0
  for depth in depths:
    rates.append(tuple(rate * i / last for i in range(first, first + depth)))
    first += depth
  return tuple(rates)
