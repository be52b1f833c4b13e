"""Layer normalisation over the last axis, whose derivative keeps its input only.

JAX's own derivative keeps the centred input in float32 beside the input, twice its bytes in bfloat16. Here
mean and variance are made again, in the pass that reads the input anyway.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.definition import defined_by


def layer_norm_reference(
  x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], *, epsilon: float
) -> Float[Array, "*b c"]:
  """The definition: (x − mean) / √(variance + ε) · scale + bias, in float32 and rounded once."""
  return _layer_norm_plain(x, scale, bias, epsilon)


@defined_by(layer_norm_reference)
def layer_norm(
  x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], *, epsilon: float
) -> Float[Array, "*b c"]:
  """Equal to `layer_norm_reference`; for `jax.jvp` see `ops.definition.plain_definitions`."""
  return _layer_norm(x, scale, bias, epsilon)


def _normal(x, epsilon):
  """(normalised input, 1 / standard deviation), float32."""
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean(-1, keepdims=True)
  rstd = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
  return centred * rstd, rstd


def _layer_norm_plain(x, scale, bias, epsilon):
  return (_normal(x, epsilon)[0] * scale + bias).astype(x.dtype)


_layer_norm = partial(jax.custom_vjp, nondiff_argnums=(3,))(_layer_norm_plain)


def _gradients(epsilon, kept, dy):
  x, scale = kept
  normal, rstd = _normal(x, epsilon)
  wide = dy.astype(jnp.float32)
  dnormal = wide * scale
  along = (dnormal * normal).mean(-1, keepdims=True)
  dx = rstd * (dnormal - dnormal.mean(-1, keepdims=True) - normal * along)
  axes = tuple(range(x.ndim - 1))
  return dx.astype(x.dtype), (wide * normal).sum(axes), wide.sum(axes)


_layer_norm.defvjp(
  lambda x, scale, bias, epsilon: (_layer_norm_plain(x, scale, bias, epsilon), (x, scale)), _gradients
)
