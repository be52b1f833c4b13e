"""Activations with parameters."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class PReLU(nn.Module):
  """x where positive, slope · x elsewhere, one learned `slope` a channel (Flax's own has one for all).

  https://arxiv.org/abs/1502.01852; initial slope 0.25 as there and in PyTorch.
  """

  init: float = 0.25

  @nn.compact
  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    slope = self.param("slope", nn.initializers.constant(self.init), (x.shape[-1],)).astype(x.dtype)
    return jnp.where(x > 0, x, slope * x)


class PReLUSlope(nn.Module):
  """The parameter of `PReLU` alone, for a BatchNorm that applies it in the same pass."""

  init: float = 0.25

  @nn.compact
  def __call__(self, features: int) -> Float[Array, " c"]:
    return self.param("slope", nn.initializers.constant(self.init), (features,))
