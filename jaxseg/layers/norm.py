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
import numpy as np
from jaxtyping import Array, Float

from jaxseg.ops.batch_norm import batch_norm_act, batch_norm_stored
from jaxseg.ops.layer_norm import layer_norm
from jaxseg.types import AnyArray


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, with the activation that follows it, if any.

  `params` scale, bias (c,); `batch_stats` mean, var (c,). `momentum` is the weight
  of the *new* statistic, as in PyTorch. Given a `slope`, negative values of the
  result are multiplied by it (PReLU; zeros are ReLU) in the same pass. Of several maps the channels are those
  of all, in turn, and so are the results. `packed` is for a row of narrow maps, see `ops.packed_conv`.
  """

  epsilon: float = 1e-5
  momentum: float = 0.1
  packed: bool = False
  dtype: Any = None
  scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

  @nn.compact
  def __call__(
    self,
    x: Float[AnyArray, "*b c"] | tuple[Float[AnyArray, "*b _"], ...],
    *,
    train: bool,
    slope: Float[AnyArray, " k"] | None = None,
  ) -> Float[Array, "*b c"] | tuple[Float[Array, "*b _"], ...]:
    maps = x if isinstance(x, tuple) else (x,)
    c = sum(y.shape[-1] for y in maps)
    scale = self.param("scale", self.scale_init, (c,))
    bias = self.param("bias", nn.initializers.zeros_init(), (c,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
    maps = nn.dtypes.promote_dtype(*maps, dtype=self.dtype)
    # Of an importer's file, they may be NumPy's.
    mean, var = jnp.asarray(running_mean.value), jnp.asarray(running_var.value)
    fields = dict(epsilon=self.epsilon, packed=self.packed)
    ends = np.cumsum([y.shape[-1] for y in maps])[:-1]

    def of_each(vector):
      return [vector] * len(maps) if vector is None or len(maps) == 1 else jnp.split(vector, ends)

    each = list(zip(maps, *map(of_each, (scale, bias, slope, mean, var)), strict=True))
    if not train:
      outs = tuple(batch_norm_stored(*arrays, **fields) for arrays in each)
    else:
      results = [batch_norm_act(*arrays[:4], shift=arrays[4], **fields) for arrays in each]
      outs, *statistics = zip(*results, strict=True)
      mean, var = (one[0] if len(one) == 1 else jnp.concatenate(one) for one in statistics)
      if not self.is_initializing():
        n = maps[0].size // maps[0].shape[-1]
        running_mean.value += self.momentum * (mean - running_mean.value)
        running_var.value += self.momentum * (var * (n / max(n - 1, 1)) - running_var.value)
    return outs if isinstance(x, tuple) else outs[0]


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
