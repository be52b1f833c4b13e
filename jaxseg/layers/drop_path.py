"""Stochastic depth (https://arxiv.org/abs/1603.09382): a residual branch is dropped for whole samples."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn

# One draw a sample, from the "dropout" key; the survivors are divided by their probability.
DropPath = partial(nn.Dropout, broadcast_dims=(1, 2, 3))


def drop_path_rates(rate: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
  """Rates of every stage's blocks: from 0 at the network's first block, linearly to `rate` at its last."""
  last = max(sum(depths) - 1, 1)
  rates, first = [], 0
  for depth in depths:
    rates.append(tuple(rate * i / last for i in range(first, first + depth)))
    first += depth
  return tuple(rates)
