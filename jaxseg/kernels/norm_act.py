"""Training-mode BatchNorm with its activation, as one operation with a derivative of its own.

Automatic differentiation of the plain form keeps several arrays as large as the
input for each layer (centred input, normalised input, sign mask) and walks memory
once for each. Here only the input is kept and the rest is computed again: one pass
of reductions and one elementwise pass, each reading the input and the gradient once.
Less memory is also less time on a CPU, where every fresh page costs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.kernels.sums import pixel_sum


def batch_norm_act_reference(
  x: Float[Array, "*b c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  slope: Float[Array, " c"] | None,
  *,
  epsilon: float,
) -> tuple[Float[Array, "*b c"], Float[Array, " c"], Float[Array, " c"]]:
  """The definition: (activated output, batch mean, biased batch variance).

  `slope` multiplies negative values (PReLU; zeros are ReLU); None is no activation.
  Statistics are float32 and two-pass.
  """
  axes = tuple(range(x.ndim - 1))
  wide = x.astype(jnp.float32)
  mean = wide.mean(axes)
  var = jnp.square(wide - mean).mean(axes)
  z = (wide - mean) * (scale * lax.rsqrt(var + epsilon)) + bias
  y = z if slope is None else jnp.where(z > 0, z, slope * z)
  return y.astype(x.dtype), mean, var


def batch_norm_act(
  x: Float[Array, "*b c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  slope: Float[Array, " c"] | None,
  *,
  epsilon: float,
) -> tuple[Float[Array, "*b c"], Float[Array, " c"], Float[Array, " c"]]:
  """Equal to `batch_norm_act_reference`; mean and variance carry no gradient (running statistics)."""
  return _norm_act(x, scale, bias, slope, epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _norm_act(x, scale, bias, slope, epsilon):
  return _forward(x, scale, bias, slope, epsilon)


def _forward(x, scale, bias, slope, epsilon):
  """The definition, with sums that do not depend on the devices."""
  wide, count = x.astype(jnp.float32), x.size // x.shape[-1]
  mean = pixel_sum(wide) / count
  var = pixel_sum(jnp.square(wide - mean)) / count
  z = (wide - mean) * (scale * lax.rsqrt(var + epsilon)) + bias
  y = z if slope is None else jnp.where(z > 0, z, slope * z)
  return y.astype(x.dtype), mean, var


def _fwd(x, scale, bias, slope, epsilon):
  y, mean, var = _forward(x, scale, bias, slope, epsilon)
  return (y, mean, var), (x, mean, lax.rsqrt(var + epsilon), scale, bias, slope)


def _bwd(epsilon, residuals, gradients):
  del epsilon
  x, mean, rstd, scale, bias, slope = residuals
  dy = gradients[0].astype(jnp.float32)
  normal = (x.astype(jnp.float32) - mean) * rstd
  if slope is None:
    dz, dslope = dy, None
  else:
    z = normal * scale + bias
    dz = jnp.where(z > 0, dy, slope * dy)
    dslope = pixel_sum(dy * jnp.minimum(z, 0))
  dbias, dscale = pixel_sum(dz), pixel_sum(dz * normal)
  count = x.size // x.shape[-1]
  dx = (scale * rstd) * (dz - dbias / count - normal * (dscale / count))
  return dx.astype(x.dtype), dscale, dbias, dslope


_norm_act.defvjp(_fwd, _bwd)
