"""Activations with parameters."""

import flax.linen as nn
from jaxtyping import Float

from jaxseg.types import AnyArray


class PReLUSlope(nn.Module):
  """PReLU's slopes, one a channel (Flax's own has one for all), for a BatchNorm that applies them.

  x where positive, slope · x elsewhere (https://arxiv.org/abs/1502.01852); initially 0.25 as there and in
  PyTorch.
  """

  initial_slope: float = 0.25

  @nn.compact
  def __call__(self, features: int) -> Float[AnyArray, " c"]:
    return self.param("slope", nn.initializers.constant(self.initial_slope), (features,))
