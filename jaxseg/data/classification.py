"""Pictures for image classifiers: the ImageNet transforms of training and test, on the host.

The rules are timm's, with which DeiT (https://arxiv.org/abs/2012.12877) was trained, and
"as DeiT" is what the papers of SegNeXt and SegFormer say about their ImageNet training; that
MSCAN and MiT changed none of the values is confirmed by no source. Pillow resamples and changes
colours, as it does there: OpenCV has no antialiased bicubic resize. What follows normalisation
(erasing, mixup, cutmix, soft labels) is in `jaxseg.data.mixing`.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from jaxseg.data.source import DataError
from jaxseg.data.transforms import MEAN_FILL

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CROP_ATTEMPTS = 10

# The operations of "rand-m9-mstd0.5-inc1": each gets stronger with its magnitude, 0 to 10.
OPERATIONS = (
  "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color",
  "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
_ENHANCERS = {
  "color": ImageEnhance.Color,
  "contrast": ImageEnhance.Contrast,
  "brightness": ImageEnhance.Brightness,
  "sharpness": ImageEnhance.Sharpness,
}
_LARGEST = {
  "rotate": 30.0,  # degrees
  "shear_x": 0.3,
  "shear_y": 0.3,
  "translate_x": 0.45,  # of the width
  "translate_y": 0.45,
}
_LEVELS = 10.0


class Operation(NamedTuple):
  """One step of RandAugment: a name of `OPERATIONS`, and how much of it (see `strength`)."""

  name: str
  amount: float


class Box(NamedTuple):
  """A part of a picture, in pixels."""

  top: int
  left: int
  height: int
  width: int


def train_image(
  image: UInt8[np.ndarray, "h w 3"],
  rng: np.random.Generator,
  *,
  size: int = 224,
  area: tuple[float, float] = (0.08, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
  flip: float = 0.5,
  magnitude: float = 9.0,
  magnitude_std: float = 0.5,
  layers: int = 2,
  interpolation: str = "bicubic",
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """A random resized crop, mirrored with probability `flip`, after `layers` RandAugment operations (0: none).

  Raises:
    DataError: an unknown `interpolation`.
  """
  method = _interpolation(interpolation)
  box = draw_box(rng, image.shape[:2], area=area, aspect=aspect)
  # The crop first: pixels outside of it have no part in the resampling.
  picture = Image.fromarray(image[box.top : box.top + box.height, box.left : box.left + box.width])
  picture = picture.resize((size, size), method)
  if rng.random() < flip:
    picture = ImageOps.mirror(picture)
  for operation in draw_operations(rng, magnitude=magnitude, magnitude_std=magnitude_std, layers=layers):
    picture = _operate(picture, operation, method)
  return np.array(picture)


def eval_image(
  image: UInt8[np.ndarray, "h w 3"],
  *,
  size: int = 224,
  crop_share: float = 0.875,
  interpolation: str = "bicubic",
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """The middle of the picture: its short side is resized to size / `crop_share`, whole pixels.

  0.875 is 256 for 224 (DeiT); VAN's code, from which MSCAN's comes, takes 0.9 (from memory).

  Raises:
    DataError: an unknown `interpolation`, or a share outside of (0, 1].
  """
  if not 0 < crop_share <= 1:
    raise DataError(f"crop_share is {crop_share}; expected above 0, up to 1 for no margin")
  method = _interpolation(interpolation)
  short = math.floor(size / crop_share)
  h, w = image.shape[:2]
  h, w = (short, int(short * w / h)) if h <= w else (int(short * h / w), short)
  picture = np.asarray(Image.fromarray(image).resize((w, h), method))
  top, left = round((h - size) / 2), round((w - size) / 2)
  return np.ascontiguousarray(picture[top : top + size, left : left + size])


def draw_box(
  rng: np.random.Generator,
  shape: tuple[int, int],
  *,
  area: tuple[float, float] = (0.08, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """A part of a picture of `shape` (h, w) for a random resized crop (Inception's).

  Its share of the area is uniform, its aspect (width over height) log-uniform, its place
  anywhere. Where `CROP_ATTEMPTS` draws do not fit, it is the largest part in the middle whose
  aspect is in range.
  """
  h, w = shape
  low, high = aspect
  for _ in range(CROP_ATTEMPTS):
    wanted = h * w * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    width, height = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
    if 0 < width <= w and 0 < height <= h:
      top, left = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
      return Box(top, left, height, width)
  height, width = h, w
  if w / h < low:
    height = round(w / low)
  elif w / h > high:
    width = round(h * high)
  return Box((h - height) // 2, (w - width) // 2, height, width)


def draw_operations(
  rng: np.random.Generator,
  *,
  magnitude: float = 9.0,
  magnitude_std: float = 0.5,
  layers: int = 2,
  probability: float = 0.5,
) -> tuple[Operation, ...]:
  """RandAugment (https://arxiv.org/abs/1909.13719) as timm's "rand-m9-mstd0.5-inc1".

  `layers` names are drawn with repetition; each is done with `probability` at a magnitude
  that is normal around `magnitude` and clipped to 0 to 10, in a random direction.
  """
  operations = []
  for name in rng.choice(OPERATIONS, layers):
    if rng.random() < probability:
      level = min(max(rng.normal(magnitude, magnitude_std), 0.0), _LEVELS)
      sign = -1.0 if rng.random() < 0.5 else 1.0
      operations.append(Operation(str(name), strength(str(name), level, sign=sign)))
  return tuple(operations)


def strength(name: str, level: float, *, sign: float = 1.0) -> float:
  """What a magnitude of 0 to 10 means to an operation.

  Degrees (rotate), shear, share of the side (translate), bits that stay (posterize), threshold
  (solarize), what is added below 128 (solarize_add), factor with 1 for no change (the enhancers), 0
  for those that have no strength.
  """
  share = level / _LEVELS
  if name in _LARGEST:
    return sign * share * _LARGEST[name]
  if name in _ENHANCERS:
    return max(0.1, 1 + sign * share * 0.9)
  if name == "posterize":
    return 4.0 - int(share * 4)
  if name == "solarize":
    return 256.0 - min(256, int(share * 256))
  if name == "solarize_add":
    return float(min(128, int(share * 110)))
  return 0.0


def apply_operation(
  image: UInt8[np.ndarray, "h w 3"], operation: Operation, *, interpolation: str = "bicubic"
) -> UInt8[np.ndarray, "h w 3"]:
  """The picture after one operation; what it moves in from outside is ImageNet's mean colour.

  Raises:
    DataError: an unknown operation or `interpolation`.
  """
  if operation.name not in OPERATIONS:
    raise DataError(f"there is no operation {operation.name!r}; known: {', '.join(OPERATIONS)}")
  return np.array(_operate(Image.fromarray(image), operation, _interpolation(interpolation)))


def _operate(picture: Image.Image, operation: Operation, method: Image.Resampling) -> Image.Image:
  name, amount = operation
  if name in _ENHANCERS:
    return _ENHANCERS[name](picture).enhance(amount)
  if name == "auto_contrast":
    return ImageOps.autocontrast(picture)
  if name == "equalize":
    return ImageOps.equalize(picture)
  if name == "invert":
    return ImageOps.invert(picture)
  if name == "posterize":
    # No bits, at the full magnitude, is black; Pillow refuses it since version 13.
    return ImageOps.posterize(picture, int(amount)) if amount else Image.new("RGB", picture.size)
  if name == "solarize":
    return ImageOps.solarize(picture, int(amount))
  if name == "solarize_add":
    table = [min(255, i + int(amount)) if i < 128 else i for i in range(256)]
    return picture.point(table * 3)
  if name == "rotate":
    return picture.rotate(amount, resample=method, fillcolor=MEAN_FILL)
  matrix = {
    "shear_x": (1, amount, 0, 0, 1, 0),
    "shear_y": (1, 0, 0, amount, 1, 0),
    "translate_x": (1, 0, amount * picture.width, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, amount * picture.height),
  }[name]
  return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=method, fillcolor=MEAN_FILL)


def _interpolation(name: str) -> Image.Resampling:
  if name not in INTERPOLATIONS:
    raise DataError(f"interpolation is {name!r}; expected one of {', '.join(map(repr, INTERPOLATIONS))}")
  return INTERPOLATIONS[name]
