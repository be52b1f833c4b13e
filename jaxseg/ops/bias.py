"""A bias whose gradient, a sum over every pixel, is a float32 sum."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def add_bias(y: Float[Array, "*b c"], bias: Float[Array | np.ndarray, " c"] | None) -> Float[Array, "*b c"]:
  """`y` + `bias` in y's dtype; None adds nothing.

  The derivative of adding in bfloat16 is a sum in bfloat16, which stops counting at 256 equal terms.
  """
  return y if bias is None else (y.astype(jnp.float32) + bias.astype(jnp.float32)).astype(y.dtype)
