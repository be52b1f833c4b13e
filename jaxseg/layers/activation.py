"""Activations with parameters."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.types import AnyArray


class PReLU(nn.Module):
  """x where positive, slope · x elsewhere, one learned `slope` a channel (Flax's own has one for all).

  https://arxiv.org/abs/1502.01852; initial slope 0.25 as there and in PyTorch.
  """

  initial_slope: float = 0.25

  @nn.compact
  def __call__(self, x: Float[AnyArray, "*b c"]) -> Float[Array, "*b c"]:
    x = jnp.asarray(x)
    slope = self.param("slope", nn.initializers.constant(self.initial_slope), (x.shape[-1],)).astype(x.dtype)
    return jnp.where(x > 0, x, slope * x)


class PReLUSlope(nn.Module):
  """The parameter of `PReLU` alone, for a BatchNorm that applies it in the same pass."""

  initial_slope: float = 0.25

  @nn.compact
  def __call__(self, features: int) -> Float[Array, " c"]:
    return self.param("slope", nn.initializers.constant(self.initial_slope), (features,))
