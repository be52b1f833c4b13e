"""Normalisation with PyTorch's conventions, which the published weights assume.

Flax differs in three places that change numbers: the default epsilon (1e-6 for
LayerNorm and GroupNorm), the meaning and default of `momentum`, and the running
variance, which PyTorch keeps unbiased. Statistics are float32 whatever the compute dtype
(`ops.batch_norm`); under `jit` over a sharded batch they are those of the global batch.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.batch_norm import batch_norm_act
from jaxseg.ops.layer_norm import layer_norm
from jaxseg.types import AnyArray


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, with the activation that follows it, if any.

  `params` scale, bias (c,); `batch_stats` mean, var (c,). `momentum` is the weight
  of the *new* statistic, as in PyTorch. Given a `slope`, negative values of the
  result are multiplied by it (PReLU; zeros are ReLU) in the same pass.
  """

  epsilon: float = 1e-5
  momentum: float = 0.1
  dtype: Any = None
  scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

  @nn.compact
  def __call__(
    self, x: Float[AnyArray, "*b c"], *, train: bool, slope: Float[AnyArray, " c"] | None = None
  ) -> Float[Array, "*b c"]:
    c = x.shape[-1]
    scale = self.param("scale", self.scale_init, (c,))
    bias = self.param("bias", nn.initializers.zeros_init(), (c,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
    if train:
      shift = jnp.asarray(running_mean.value)  # of an importer's file, it may be NumPy's
      y, mean, var = batch_norm_act(x, scale, bias, slope, epsilon=self.epsilon, shift=shift)
      if not self.is_initializing():
        n = x.size // c
        running_mean.value += self.momentum * (mean - running_mean.value)
        running_var.value += self.momentum * (var * (n / max(n - 1, 1)) - running_var.value)
      return y
    weight = scale * lax.rsqrt(running_var.value + self.epsilon)
    y = x * weight + (bias - running_mean.value * weight)
    return (y if slope is None else jnp.where(y > 0, y, slope * y)).astype(x.dtype)


class LayerNorm(nn.Module):
  """Normalisation over the last axis; `params` scale, bias (c,). See `ops.layer_norm`."""

  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[AnyArray, "*b c"]) -> Float[Array, "*b c"]:
    c = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones_init(), (c,))
    bias = self.param("bias", nn.initializers.zeros_init(), (c,))
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
    return layer_norm(x, scale, bias, epsilon=self.epsilon)


# `params` scale, bias (c,): over 32 groups of channels.
GroupNorm = partial(nn.GroupNorm, num_groups=32, epsilon=1e-5, use_fast_variance=False)
