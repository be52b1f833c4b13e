"""Geometry on the host: random scale, crop and flip.

What is drawn (`Geometry`) is separate from what is done with it (`apply_geometry`), so
that any reference's draws can be replayed (`jaxseg.data.replay`). The result equals
resize → crop → flip → pad, or → pad → flip, of OpenCV: labels exactly, images exactly too up to 16
megapixels, unless `exact=False` (training) allows one grey level: then only the pixels that stay are
resampled where that is faster, as it is beyond 16 megapixels in any case.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Int, Integer, UInt8

from jaxseg.data.source import DataError
from jaxseg.types import IGNORE_LABEL

# Grey of ImageNet's mean colour, RGB; zero after normalisation, give or take half a level.
MEAN_FILL = (124, 116, 104)

Pad = Literal["after_flip", "before_flip"]
PADS = ("after_flip", "before_flip")
# Up to here the whole picture is resized and then cut, which is the reference itself.
_WHOLE_PIXELS = 1 << 24
# cv2.resize makes a pixel in a sixth of the time that resampling just the crop takes, so that the whole
# picture is resized, too, up to so many crops (2048x1024 at scale 2, crop 512: 16.7 and 2.8 ms).
_WHOLE_CROPS = 6
MAX_RETRIES = 10  # crops tried after the first one until one is mixed enough (mmsegmentation's bound)


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

  `scale_step=0` draws the scale uniformly from `scale_range`; otherwise one of low,
  low + step, ..., high (CGNet .1, DeepLab .25). `resize` is () where the scale is a
  factor of the picture itself, or (long, short): the picture is then scaled to fit
  int(long × scale) and int(short × scale), its aspect kept (mmsegmentation). A crop in
  which one class has `cat_max_ratio` of the labelled pixels or more is drawn again, at
  most `MAX_RETRIES` times; 1.0 takes any. `flip` is a probability. `pad="before_flip"`
  mirrors the crop with its padding, so that padding can lie on the left (the authors'
  CGNet and DeepLab code); "after_flip" always pads the right (mmsegmentation).
  """

  crop_size: tuple[int, int]
  scale_range: tuple[float, float] = (1.0, 1.0)
  scale_step: float = 0.0
  flip: float = 0.5
  resize: tuple[int, ...] = ()
  cat_max_ratio: float = 1.0
  pad: Pad = "after_flip"


def make_rule(
  *,
  crop_size: Sequence[int],
  scale_range: Sequence[float],
  scale_step: float,
  flip: float,
  resize: Sequence[int] = (),
  cat_max_ratio: float = 1.0,
  pad: str = "after_flip",
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
  if len(resize) and (len(resize) != 2 or not all(isinstance(side, int) and side > 0 for side in resize)):
    raise DataError(
      f"data.resize is {tuple(resize)}; expected (long, short), whole pixels that the sides may have"
      " before random scaling, or () for the picture's own size"
    )
  if not 0 < cat_max_ratio <= 1:
    raise DataError(
      f"data.cat_max_ratio is {cat_max_ratio}; expected the largest share that a class may have of a"
      " crop, above 0, or 1 for any"
    )
  if pad not in PADS:
    raise DataError(f"data.pad is {pad!r}; expected one of {', '.join(map(repr, PADS))}")
  return GeometryRule(
    crop_size=(int(crop_size[0]), int(crop_size[1])),
    scale_range=(float(scale_range[0]), float(scale_range[1])),
    scale_step=float(scale_step),
    flip=float(flip),
    resize=tuple(int(side) for side in resize),
    cat_max_ratio=float(cat_max_ratio),
    pad=pad,
  )


def draw_geometry(
  rng: np.random.Generator,
  shape: tuple[int, int],
  rule: GeometryRule,
  *,
  label: Integer[np.ndarray, "h w"] | None = None,
) -> Geometry:
  """Draws scale, crop offset and flip for an image of `shape` (h, w).

  Offsets are uniform over every position at which the crop fits, 0 along a side that is
  shorter than the crop. `label` is the image's own, and needed where
  `rule.cat_max_ratio` is below 1.
  """
  size = scaled_size(shape, draw_scale(rng, rule), resize=rule.resize)
  top, left = _draw_offset(rng, size, rule.crop_size)
  if rule.cat_max_ratio < 1:
    for _ in range(MAX_RETRIES):
      if _is_mixed(_class_counts(label, size, (top, left), rule.crop_size), rule.cat_max_ratio):
        break
      top, left = _draw_offset(rng, size, rule.crop_size)
  return Geometry(size=size, top=top, left=left, flip=bool(rng.random() < rule.flip))


def draw_scale(rng: np.random.Generator, rule: GeometryRule) -> float:
  """A scale from the rule's range or steps, both ends included."""
  low, high = rule.scale_range
  if not rule.scale_step:
    return float(rng.uniform(low, high))
  steps = int(np.floor((high - low) / rule.scale_step + 1e-6))
  return low + rule.scale_step * int(rng.integers(steps + 1))


def scaled_size(shape: tuple[int, int], scale: float, *, resize: Sequence[int] = ()) -> tuple[int, int]:
  """(h, w) of an image of `shape` after scaling by `scale`, relative to itself or to `resize`."""
  if len(resize):
    return fit_size(shape, (int(resize[0] * scale), int(resize[1] * scale)))
  return _times(shape, scale)


def fit_size(shape: tuple[int, int], limits: Sequence[int]) -> tuple[int, int]:
  """The largest (h, w) with the aspect of `shape` whose sides fit `limits`, (long, short) in any order.

  A side is int(side × factor + 0.5), mmcv's rounding, and at least 1.
  """
  return _times(shape, min(max(limits) / max(shape), min(limits) / min(shape)))


def _times(shape: tuple[int, int], factor: float) -> tuple[int, int]:
  return max(int(shape[0] * factor + 0.5), 1), max(int(shape[1] * factor + 0.5), 1)


def _draw_offset(
  rng: np.random.Generator, size: tuple[int, int], crop_size: tuple[int, int]
) -> tuple[int, int]:
  top, left = (int(rng.integers(max(side - crop, 0) + 1)) for side, crop in zip(size, crop_size, strict=True))
  return top, left


def _class_counts(
  label: np.ndarray, size: tuple[int, int], offset: tuple[int, int], crop_size: tuple[int, int]
) -> np.ndarray:
  """Pixels of each class in the crop of the resized label, unlabelled ones left out.

  A source row that the crop shows several times is looked at once: rows that it shows equally often
  are counted together.
  """
  rows, columns = _places(label.shape, size, offset, crop_size)
  times = np.bincount(rows - rows[0])
  counts = np.zeros(IGNORE_LABEL)
  for count in set(times.tolist()) - {0}:
    ids = label[rows[0] + np.flatnonzero(times == count)][:, columns]
    # A quarter of np.bincount's time, which would widen the ids first.
    counts += count * cv2.calcHist([ids], [0], None, [IGNORE_LABEL], [0, IGNORE_LABEL]).ravel()
  return counts


def _is_mixed(counts: np.ndarray, cat_max_ratio: float) -> bool:
  """More than one class, none of which has `cat_max_ratio` of the labelled pixels."""
  return bool((counts > 0).sum() > 1 and counts.max() / counts.sum() < cat_max_ratio)


def crop_label(
  label: Integer[np.ndarray, "h w"], geometry: Geometry, *, crop_size: tuple[int, int]
) -> Integer[np.ndarray, "_ _"]:
  """The crop of the resized label, at most `crop_size`, neither mirrored nor padded."""
  offset = (geometry.top, geometry.left)
  return _take(label, *_places(label.shape, geometry.size, offset, crop_size))


def crop_image(
  image: UInt8[np.ndarray, "h w c"], geometry: Geometry, *, crop_size: tuple[int, int], exact: bool = True
) -> UInt8[np.ndarray, "_ _ c"]:
  """The crop of the resized image, at most `crop_size`, neither mirrored nor padded.

  `exact=False` allows one grey level of difference from the reference where that is faster.
  """
  height, width = (
    min(offset + crop, side) - offset
    for offset, crop, side in zip((geometry.top, geometry.left), crop_size, geometry.size, strict=True)
  )
  return _resample(image, geometry, height, width, exact)


def apply_geometry(
  image: UInt8[np.ndarray, "h w c"],
  label: Integer[np.ndarray, "h w"],
  geometry: Geometry,
  *,
  crop_size: tuple[int, int],
  fill: tuple[int, ...] = MEAN_FILL,
  pad: Pad = "after_flip",
  exact: bool = True,
) -> tuple[
  UInt8[np.ndarray, "{crop_size[0]} {crop_size[1]} c"], Integer[np.ndarray, "{crop_size[0]} {crop_size[1]}"]
]:
  """The crop; where the resized image is smaller, the rest is `fill` and label 255; `exact`: `crop_image`."""
  picture = crop_image(image, geometry, crop_size=crop_size, exact=exact)
  rows, columns = _places(label.shape, geometry.size, (geometry.top, geometry.left), crop_size)
  if geometry.flip:
    picture, columns = _with_channels(cv2.flip(picture, 1)), columns[::-1]
  ids = _take(label, rows, columns)
  if picture.shape[:2] == tuple(crop_size):
    return np.ascontiguousarray(picture), ids
  box = filled_box(geometry, crop_size=crop_size, pad=pad)
  return _padded(picture, box, crop_size, fill), _padded(ids, box, crop_size, IGNORE_LABEL)


def _padded(
  part: np.ndarray, box: tuple[int, int, int, int], crop_size: tuple[int, int], fill: object
) -> np.ndarray:
  """`part` in its box, and `fill` around it, written once: most of the time is memory's."""
  top, left, bottom, right = box
  out = np.empty((*crop_size, *part.shape[2:]), part.dtype)
  row = np.empty(out.shape[1:], part.dtype)
  row[:] = fill  # rows are copied faster than single colours
  out[:top], out[bottom:] = row, row
  out[top:bottom, :left], out[top:bottom, right:] = row[:left], row[right:]
  out[top:bottom, left:right] = part
  return out


def filled_box(
  geometry: Geometry, *, crop_size: tuple[int, int], pad: Pad = "after_flip"
) -> tuple[int, int, int, int]:
  """(top, left, bottom, right) of the part of a crop that shows the image; the rest is padding."""
  height, width = (
    min(offset + crop, side) - offset
    for offset, crop, side in zip((geometry.top, geometry.left), crop_size, geometry.size, strict=True)
  )
  left = crop_size[1] - width if geometry.flip and pad == "before_flip" else 0
  return 0, left, height, left + width


def _places(
  shape: tuple[int, int], size: tuple[int, int], offset: tuple[int, int], crop_size: tuple[int, int]
) -> tuple[Int[np.ndarray, "h"], Int[np.ndarray, "w"]]:
  """Source rows and columns that a crop of the label shows, in its order."""
  return tuple(
    _nearest(_steps(source, resized, start, crop), source)
    for source, resized, start, crop in zip(shape, size, offset, crop_size, strict=True)
  )


def _take(label: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """`label[rows][:, columns]`, columns first, and only of the rows that are needed."""
  part = label[rows[0] : rows[-1] + 1]
  return np.take(np.take(part, columns, axis=1), rows - rows[0], axis=0)


def _steps(source: int, resized: int, offset: int, crop: int) -> np.ndarray:
  """Left edges, in source pixels, of the crop's output pixels."""
  # 1 / (b / a), not a / b: at exact boundaries the last bit decides, and this is cv2's.
  return np.arange(offset, min(offset + crop, resized)) * (1.0 / (resized / source))


def _nearest(edges: np.ndarray, source: int) -> Int[np.ndarray, "n"]:
  """OpenCV's and PyTorch's nearest neighbour: floor(i × scale), without a half-pixel shift."""
  return np.minimum(edges.astype(np.int64), source - 1)


def _resample(
  image: UInt8[np.ndarray, "h w c"], geometry: Geometry, height: int, width: int, exact: bool
) -> UInt8[np.ndarray, "{height} {width} c"]:
  """Bilinear with half-pixel centres and no antialiasing (cv2.resize's rule), cropped."""
  if geometry.size == image.shape[:2]:
    return image[geometry.top : geometry.top + height, geometry.left : geometry.left + width]
  pixels = geometry.size[0] * geometry.size[1]
  if pixels <= _WHOLE_PIXELS and (exact or pixels <= _WHOLE_CROPS * height * width):
    h, w = geometry.size
    whole = _with_channels(cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR))
    return whole[geometry.top : geometry.top + height, geometry.left : geometry.left + width]
  # From OpenCV 5 on this is within one grey level of cv2.resize; 4.x rounds positions
  # to 1/32 pixel, which is up to six levels between black and white neighbours.
  sy, sx = image.shape[0] / geometry.size[0], image.shape[1] / geometry.size[1]
  ty, tx = (geometry.top + 0.5) * sy - 0.5, (geometry.left + 0.5) * sx - 0.5
  # Only the source pixels that the crop shows: the rest would be copied in vain.
  y, x = max(int(ty) - 2, 0), max(int(tx) - 2, 0)
  part = image[y : int(ty + height * sy) + 3, x : int(tx + width * sx) + 3]
  crop = cv2.warpAffine(
    part,
    np.array([[sx, 0.0, tx - x], [0.0, sy, ty - y]]),
    (width, height),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )
  return _with_channels(crop)


def _with_channels(image: np.ndarray) -> np.ndarray:
  """With the third axis that OpenCV drops of a grey image."""
  return image[..., None] if image.ndim == 2 else image
