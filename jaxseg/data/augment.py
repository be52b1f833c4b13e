"""What may be done to a training crop beyond scale, crop and flip; all of it is off by default.

Vertical flip, rotation and blur are here; anything else is a transform of your own, or of Albumentations or
Grain, by its import path: `config.data.extra="my_module:transform"`.
"""

import dataclasses
import importlib
import os
import sys
from typing import Any

import cv2
import grain
import numpy as np
from jaxtyping import Integer, UInt8

from jaxseg.data.source import DataError
from jaxseg.types import IGNORE_LABEL

# Standard deviations of the blur, in pixels.
_BLUR_SIGMA = (0.1, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extra:
  """Further changes of a crop, in this order.

  Attributes:
    flip_vertical: probability of a mirrored image, upside down.
    rotate: the angle is drawn between this many degrees to either side; 0 leaves the crop as it is. Corners
      that rotate in have the fill colour and no label.
    blur: probability of a Gaussian blur of 0.1 to 2 pixels.
    transform: what `load_transform` gives, or None.
  """

  flip_vertical: float = 0.0
  rotate: float = 0.0
  blur: float = 0.0
  transform: Any = None

  def __bool__(self) -> bool:
    return bool(self.flip_vertical or self.rotate or self.blur or self.transform is not None)

  def __call__(
    self,
    image: UInt8[np.ndarray, "h w c"],
    label: Integer[np.ndarray, "h w"],
    rng: np.random.Generator,
    *,
    fill: tuple[int, ...],
  ) -> tuple[UInt8[np.ndarray, "h w c"], Integer[np.ndarray, "h w"]]:
    """The changed crop, of the same size.

    Raises:
      DataError: the transform gives something else than a crop of this size and kind.
    """
    if self.flip_vertical and rng.random() < self.flip_vertical:
      image, label = cv2.flip(image, 0), cv2.flip(label, 0)
    if self.rotate:
      image, label = _rotated(image, label, rng.uniform(-self.rotate, self.rotate), fill)
    if self.blur and rng.random() < self.blur:
      image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*_BLUR_SIGMA))
    if self.transform is not None:
      image, label = _transformed(self.transform, image, label, rng)
    return image, label


def load_transform(path: str) -> Any:
  """The transform that `module:name` says, looked for in the current folder, too; None for "".

  It may be a function `(image, label, rng) -> (image, label)` of uint8 arrays and a NumPy generator, an
  Albumentations transform or `Compose` (seeded anew for each example), or a Grain `Map` or `RandomMap` of
  {"image", "label"}. Worker processes import it again, so it has to stand at the top level of its module.

  Raises:
    DataError: no such module or name, or what is there is none of these.
  """
  if not path:
    return None
  module, _, name = path.partition(":")
  if not module or not name:
    raise DataError(f"data.extra is {path!r}; expected module:name, such as my_transforms:train")
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())  # a console script has its own folder there instead
  try:
    found = importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name != module.split(".")[0] and error.name != module:
      raise  # of something that the module imports
    raise DataError(
      f"data.extra is {path!r}, but there is no module {module!r}; run in its folder, or install it"
    ) from None
  if not hasattr(found, name):
    raise DataError(f"data.extra is {path!r}, but {found.__file__} has no {name!r}")
  transform = getattr(found, name)
  if not callable(transform) and not isinstance(transform, grain.transforms.Map | grain.transforms.RandomMap):
    raise DataError(
      f"data.extra is {path!r}, a {type(transform).__name__}; expected a function (image, label, rng), an"
      " Albumentations transform, or a Grain Map or RandomMap"
    )
  return transform


def _rotated(
  image: np.ndarray, label: np.ndarray, degrees: float, fill: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  height, width = label.shape
  matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
  size = (width, height)
  how = dict(flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
  # OpenCV has a border's colour for up to four channels.
  parts = [
    cv2.warpAffine(image[..., i : i + 3], matrix, size, borderValue=fill[i : i + 3], **how)
    for i in range(0, image.shape[2], 3)
  ]
  image = np.dstack(parts)
  label = cv2.warpAffine(
    label, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE_LABEL
  )
  return image, label


def _transformed(
  transform: Any, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(transform, grain.transforms.RandomMap):
    out = transform.random_map({"image": image, "label": label}, rng)
    new = out["image"], out["label"]
  elif isinstance(transform, grain.transforms.Map):
    out = transform.map({"image": image, "label": label})
    new = out["image"], out["label"]
  elif hasattr(transform, "set_random_seed"):  # Albumentations draws from a generator of its own
    transform.set_random_seed(int(rng.integers(2**31)))
    out = transform(image=image, mask=label)
    new = out["image"], out["mask"]
  else:
    new = transform(image, label, rng)
  for what, before, after in zip(("image", "label"), (image, label), new, strict=True):
    if not isinstance(after, np.ndarray) or after.shape != before.shape or after.dtype != before.dtype:
      got = f"{getattr(after, 'dtype', type(after).__name__)} of shape {np.shape(after)}"
      raise DataError(
        f"the transform of data.extra gives as {what} {got}; expected {before.dtype} of shape {before.shape}"
      )
  return new
