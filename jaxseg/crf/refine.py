"""The CRF over a whole data set: the papers' two kernels as settings, and one refiner for many images."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxseg.crf.mean_field import METHODS, run
from jaxseg.crf.rooms import SharedRooms
from jaxseg.errors import UserError
from jaxseg.types import AnyArray

Number = int | float

# (sxy, srgb, compat) each, as `mean_field` takes them.
Kernels = tuple[tuple[Number, Number | None, Number], ...]


def papers_kernels(
  w1: Number, sxy: Number, srgb: Number, *, w2: Number = 3.0, smooth: Number = 3.0
) -> Kernels:
  """The papers' two kernels: smoothness (w2, σγ) and appearance (w1, σα, σβ), in that order."""
  return ((smooth, None, w2), (sxy, srgb, w1))


@dataclasses.dataclass(frozen=True)
class Settings:
  """The DeepLab papers' CRF; the values are those of the public DeepLabv2 model of VOC.

  DeepLabv1's authors give (w1, sxy, srgb) for each of their models: 4, 121, 5 for LargeFOV
  (`deeplabv1_vgg16` here), 4, 83, 5 for MSc-LargeFOV (`deeplabv1_msc_vgg16`).

  Raises:
    UserError: a weight or width that is no such thing, steps below 1, an unknown method.
  """

  w1: Number = 4.0  # weight of the appearance kernel
  sxy: Number = 67.0  # its σα, pixels
  srgb: Number = 3.0  # its σβ, grey levels
  w2: Number = 3.0  # weight of the smoothness kernel
  smooth: Number = 3.0  # its σγ, pixels
  steps: int = 10
  method: str = "lattice"

  def __post_init__(self):
    for name in ("w1", "w2"):
      if not 0 <= getattr(self, name) < float("inf"):
        raise UserError(f"{name} is {getattr(self, name)}; expected a weight of 0 or more")
    for name in ("sxy", "srgb", "smooth"):
      if not 0 < getattr(self, name) < float("inf"):
        raise UserError(f"{name} is {getattr(self, name)}; a standard deviation must be above 0")
    if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
      raise UserError(f"steps is {self.steps!r}; expected a whole number of updates, 1 or more")
    if self.method not in METHODS:
      raise UserError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}")

  @property
  def kernels(self) -> Kernels:
    """As `mean_field` takes them."""
    return papers_kernels(self.w1, self.sxy, self.srgb, w2=self.w2, smooth=self.smooth)


class Refiner:
  """`mean_field` for one image after the other, of any sizes: few compilations serve them all.

  The lattice is sized for each image and padded to a size used before where one fits, so that
  nothing is ever cut off, and the result is that of `mean_field`.
  """

  def __init__(self, *, steps: int = 10, method: str = "lattice"):
    self._steps, self._method, self._rooms = steps, method, SharedRooms()

  def __call__(self, unary: Float[AnyArray, "h w k"], image: AnyArray, kernels: Any) -> Float[Array, "h w k"]:
    """Class probabilities; arguments and errors are those of `mean_field`."""
    logits, _ = run(
      unary, image, kernels, self._steps, self._method, capacity=None, energies=False, rooms=self._rooms
    )
    return jax.nn.softmax(logits, axis=-1)
