"""Normalisation with PyTorch's conventions, which the published weights assume.

Flax differs in three places that change numbers: the default epsilon (1e-6 for
LayerNorm and GroupNorm), the meaning and default of `momentum`, and the running
variance, which PyTorch keeps unbiased. Statistics are float32 and two-pass whatever
the compute dtype; under `jit` over a sharded batch they are those of the global batch.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last.

  `params` scale, bias (c,); `batch_stats` mean, var (c,). `momentum` is the weight
  of the *new* statistic, as in PyTorch.
  """

  epsilon: float = 1e-5
  momentum: float = 0.1
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
    c = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones_init(), (c,))
    bias = self.param("bias", nn.initializers.zeros_init(), (c,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
    (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
    if train:
      axes = tuple(range(x.ndim - 1))
      wide = x.astype(jnp.float32)
      mean = wide.mean(axes)
      var = jnp.square(wide - mean).mean(axes)
      if not self.is_initializing():
        n = x.size // c
        unbiased = var * (n / max(n - 1, 1))
        running_mean.value += self.momentum * (mean - running_mean.value)
        running_var.value += self.momentum * (unbiased - running_var.value)
    else:
      mean, var = running_mean.value, running_var.value
    weight = scale * lax.rsqrt(var + self.epsilon)
    return (x * weight + (bias - mean * weight)).astype(x.dtype)


# `params` scale, bias (c,): over the last axis, and over 32 groups of channels.
LayerNorm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
GroupNorm = partial(nn.GroupNorm, num_groups=32, epsilon=1e-5, use_fast_variance=False)
