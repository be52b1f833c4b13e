"""Geometry on the host: random scale, crop and flip as one resampling of the pixels that stay.

What is drawn (`Geometry`) is separate from what is done with it (`apply_geometry`), so
that any reference's draws can be replayed. The result equals resize → crop → flip →
pad: labels exactly, images within one grey level.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from jaxseg.data.source import DataError
from jaxseg.types import IGNORE_LABEL

# Grey of ImageNet's mean colour, RGB; zero after normalisation, give or take half a level.
MEAN_FILL = (124, 116, 104)


@dataclasses.dataclass(frozen=True)
class Geometry:
  """One draw: resize to `size` (h, w), crop at (`top`, `left`) of that, then mirror if `flip`."""

  size: tuple[int, int]
  top: int = 0
  left: int = 0
  flip: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometryRule:
  """How geometry is drawn.

  `scale_step=0` draws the scale uniformly from `scale_range`; otherwise one of
  low, low + step, ..., high (CGNet and DeepLab). `flip` is a probability.
  """

  crop_size: tuple[int, int]
  scale_range: tuple[float, float] = (1.0, 1.0)
  scale_step: float = 0.0
  flip: float = 0.5


def make_rule(
  *, crop_size: Sequence[int], scale_range: Sequence[float], scale_step: float, flip: float
) -> GeometryRule:
  """A checked rule.

  Raises:
    DataError: a length, range or probability that makes no sense.
  """
  if len(crop_size) != 2 or min(crop_size) < 1:
    raise DataError(f"data.crop_size is {tuple(crop_size)}; expected (height, width), both at least 1")
  if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
    raise DataError(f"data.scale_range is {tuple(scale_range)}; expected (low, high) with 0 < low <= high")
  if scale_step < 0:
    raise DataError(f"data.scale_step is {scale_step}; expected 0 for any scale, or a positive step")
  if not 0 <= flip <= 1:
    raise DataError(f"data.flip is {flip}; expected a probability from 0 to 1")
  return GeometryRule(
    crop_size=(int(crop_size[0]), int(crop_size[1])),
    scale_range=(float(scale_range[0]), float(scale_range[1])),
    scale_step=float(scale_step),
    flip=float(flip),
  )


def draw_geometry(rng: np.random.Generator, shape: tuple[int, int], rule: GeometryRule) -> Geometry:
  """Draws scale, crop offset and flip for an image of `shape` (h, w).

  The resized side is int(side × scale + 0.5), mmcv's rounding; offsets are uniform over
  every position at which the crop fits, 0 along a side that is shorter than the crop.
  """
  scale = draw_scale(rng, rule)
  size = (max(int(shape[0] * scale + 0.5), 1), max(int(shape[1] * scale + 0.5), 1))
  top, left = (
    int(rng.integers(max(side - crop, 0) + 1)) for side, crop in zip(size, rule.crop_size, strict=True)
  )
  return Geometry(size=size, top=top, left=left, flip=bool(rng.random() < rule.flip))


def draw_scale(rng: np.random.Generator, rule: GeometryRule) -> float:
  """A scale from the rule's range or steps, both ends included."""
  low, high = rule.scale_range
  if not rule.scale_step:
    return float(rng.uniform(low, high))
  steps = int(np.floor((high - low) / rule.scale_step + 1e-6))
  return low + rule.scale_step * int(rng.integers(steps + 1))


def apply_geometry(
  image: UInt8[np.ndarray, "h w 3"],
  label: UInt8[np.ndarray, "h w"],
  geometry: Geometry,
  *,
  crop_size: tuple[int, int],
  fill: tuple[int, int, int] = MEAN_FILL,
) -> tuple[
  UInt8[np.ndarray, "{crop_size[0]} {crop_size[1]} 3"], UInt8[np.ndarray, "{crop_size[0]} {crop_size[1]}"]
]:
  """The crop; where the resized image is smaller, the bottom and right are `fill` and label 255."""
  rows = _steps(image.shape[0], geometry.size[0], geometry.top, crop_size[0])
  columns = _steps(image.shape[1], geometry.size[1], geometry.left, crop_size[1])
  picture = _resample(image, geometry, len(rows), len(columns))
  ids = label[_nearest(rows, image.shape[0])][:, _nearest(columns, image.shape[1])]
  if geometry.flip:
    picture, ids = picture[:, ::-1], ids[:, ::-1]
  if picture.shape[:2] == tuple(crop_size):
    return np.ascontiguousarray(picture), np.ascontiguousarray(ids)
  out = np.empty((*crop_size, 3), np.uint8)
  out[:] = fill
  out[: len(rows), : len(columns)] = picture
  out_label = np.full(crop_size, IGNORE_LABEL, np.uint8)
  out_label[: len(rows), : len(columns)] = ids
  return out, out_label


def _steps(source: int, resized: int, offset: int, crop: int) -> np.ndarray:
  """Left edges, in source pixels, of the crop's output pixels."""
  # 1 / (b / a), not a / b: at exact boundaries the last bit decides, and this is cv2's.
  return np.arange(offset, min(offset + crop, resized)) * (1.0 / (resized / source))


def _nearest(edges: np.ndarray, source: int) -> Int[np.ndarray, "n"]:
  """OpenCV's and PyTorch's nearest neighbour: floor(i × scale), without a half-pixel shift."""
  return np.minimum(edges.astype(np.int64), source - 1)


def _resample(
  image: UInt8[np.ndarray, "h w 3"], geometry: Geometry, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
  """Bilinear with half-pixel centres and no antialiasing (cv2.resize's rule), cropped."""
  if geometry.size == image.shape[:2]:
    return image[geometry.top : geometry.top + height, geometry.left : geometry.left + width]
  if (height, width) == geometry.size:  # nothing is cut off
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
  # From OpenCV 5 on this is within one grey level of cv2.resize; 4.x rounds positions
  # to 1/32 pixel, which is up to six levels between black and white neighbours.
  sy, sx = image.shape[0] / geometry.size[0], image.shape[1] / geometry.size[1]
  ty, tx = (geometry.top + 0.5) * sy - 0.5, (geometry.left + 0.5) * sx - 0.5
  return cv2.warpAffine(
    image,
    np.array([[sx, 0.0, tx], [0.0, sy, ty]]),
    (width, height),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )
