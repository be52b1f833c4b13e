"""The CRF as a layer that trains with the network (Zheng et al. 2015, arXiv:1502.03240)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.crf.mean_field import run
from jaxseg.types import AnyArray


class CRF(nn.Module):
  """Refines logits by mean field; compatibilities, and on request the widths, are parameters.

  `kernels` gives the values to start from, (sxy, srgb or None, Potts weight) each.
  Parameters of kernel i: `compat{i}`, and with `train_widths` `log_sxy{i}` and
  `log_srgb{i}`, logarithms so that a width stays positive.
  """

  kernels: Sequence[tuple[int | float, int | float | None, int | float]] = (
    (3.0, None, 3.0),
    (67.0, 3.0, 4.0),
  )
  steps: int = 5
  method: str = "lattice"
  capacity: int | Sequence[int] | None = None  # see mean_field; set it where the step is jitted
  full_compatibility: bool = False  # k×k penalties, from −w·I (the Potts model of weight w), instead of w
  train_widths: bool = False

  @nn.compact
  def __call__(self, logits: Float[AnyArray, "b h w k"], image: AnyArray) -> Float[Array, "b h w k"]:
    """Refined logits, at the image's size.

    Args:
      logits: the network's, brought to the image's size.
      image: RGB in 0..255, not normalised, b h w 3; uint8, or floats of that range.
    """
    classes = logits.shape[-1]
    kernels = []
    for number, (sxy, srgb, weight) in enumerate(self.kernels):
      start = -weight * jnp.eye(classes) if self.full_compatibility else jnp.asarray(weight)
      compat = self.param(f"compat{number}", nn.initializers.constant(start), start.shape)
      if self.train_widths:
        sxy = self._width(f"log_sxy{number}", sxy)
        srgb = self._width(f"log_srgb{number}", srgb) if srgb else None
      kernels.append((sxy, srgb, compat))
    unary = -jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
    refined, _ = run(unary, image, kernels, self.steps, self.method, capacity=self.capacity, energies=False)
    return refined

  def _width(self, name, value):
    return jnp.exp(self.param(name, nn.initializers.constant(jnp.log(value)), ()))
