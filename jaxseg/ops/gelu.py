"""GELU whose derivative keeps its input only.

JAX's own derivative keeps a product and two factors beside it, three arrays as large as the input that
every layer writes to memory and reads back; the error function is cheaper to evaluate again.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.definition import defined_by


def gelu_reference(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """The definition: x · Φ(x), Φ the standard normal distribution; in float32 and rounded once."""
  wide = x.astype(jnp.float32)
  return (wide * _distribution(wide)).astype(x.dtype)


@defined_by(gelu_reference)
def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """Equal to `gelu_reference`; for `jax.jvp` see `ops.definition.plain_definitions`."""
  return _gelu(x)


_gelu = jax.custom_vjp(gelu_reference)


def _gradient(x, dy):
  wide = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
  slope = _distribution(wide) + wide * density
  return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


_gelu.defvjp(lambda x: (gelu_reference(x), x), _gradient)


def _distribution(x):
  return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))
