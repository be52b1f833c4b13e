"""The free energy that mean field lowers, for the picture of it falling by step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.crf.mean_field import run
from jaxseg.types import AnyArray


def energy(
  q: Float[AnyArray, "*b h w k"],
  unary: Float[AnyArray, "*b h w k"],
  image: AnyArray,
  kernels: Any,
  method: str = "exact",
  *,
  capacity: int | Sequence[int] | None = None,
) -> Float[Array, "*b"]:
  """Mean-field free energy of probabilities `q`, one number an image, in nats.

  F(Q) = Σ Q·(U + log Q) − ½ Σ w Q·(K Q), and + ½ Σ Q·(K Q μ) for a penalty matrix:
  the function whose stationary points the updates of `mean_field` seek. A Potts
  weight counts agreement as negative, so F differs from the energy that counts
  disagreement by a constant a pixel pair. The arguments are `mean_field`'s.
  """
  tiny = jnp.finfo(jnp.float32).tiny
  logits = jnp.log(jnp.maximum(jnp.asarray(q), tiny))
  _, trace = run(unary, image, kernels, 0, method, capacity=capacity, energies=True, start=logits)
  return trace[..., 0]


def energy_by_step(
  unary: Float[AnyArray, "*b h w k"],
  image: AnyArray,
  kernels: Any,
  steps: int = 10,
  method: str = "exact",
  *,
  capacity: int | Sequence[int] | None = None,
) -> tuple[Float[Array, "*b h w k"], Float[Array, "*b s"]]:
  """`mean_field`'s result, and the free energy before the first and after every update (s = steps + 1).

  All pixels are updated at once, as the papers do, so that a strong coupling may
  raise the energy in a step.
  """
  logits, trace = run(unary, image, kernels, steps, method, capacity=capacity, energies=True)
  return jax.nn.softmax(logits, axis=-1), trace
