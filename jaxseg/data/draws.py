"""Augmentation under draws that somebody else made: for holding ours against a reference.

Training draws with `draw_geometry` and `color.draw`, and applies with `apply_geometry` and
`color.apply`; here the same two are applied to given draws, one picture at a time.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int, Integer, UInt8

from jaxseg.data import color
from jaxseg.data.source import DataError
from jaxseg.data.transforms import (
  MEAN_FILL,
  PADS,
  Geometry,
  apply_geometry,
  filled_box,
  fit_size,
  scaled_size,
)

_apply_color = jax.jit(color.apply)


def replay(
  image: UInt8[np.ndarray, "h w c"],
  label: Integer[np.ndarray, "h w"],
  *,
  crop_size: int | Sequence[int] | Int[np.ndarray, "..."],
  scale: float | int | Sequence[int] | Int[np.ndarray, "2"] = 1.0,
  offset: Sequence[int] | Int[np.ndarray, "2"] = (0, 0),
  flip: bool = False,
  color_draws: Sequence[float | int] | Float[np.ndarray, "_"] = (),
  pad: str | None = None,
  fill: tuple[int, ...] = MEAN_FILL,
) -> tuple[UInt8[np.ndarray, "_ _ c"], Integer[np.ndarray, "_ _"]]:
  """What training makes of an RGB picture and its label when these are the draws.

  Args:
    image: RGB.
    label: 255 marks a pixel without a label.
    crop_size: side of a square, or (height, width).
    scale: (long, short) limits that the picture is scaled to fit with its aspect kept, the
      random ratio included (mmsegmentation's `scale`); or a factor of the picture itself.
    offset: (top, left) of the crop in the scaled picture.
    flip: whether the crop is mirrored.
    color_draws: numbers in the order in which mmsegmentation draws them, see `parse_draws`;
      () leaves colours alone.
    pad: None returns what the crop shows of the picture; "after_flip" and "before_flip" fill
      it up to `crop_size` with `fill` and 255, after colours are changed.
    fill: RGB grey levels.

  Returns:
    (image, label).

  Raises:
    DataError: a draw that no rule could have made.
  """
  height, width = (int(side) for side in np.broadcast_to(crop_size, 2))
  limits = np.ravel(scale)
  if pad is not None and pad not in PADS:
    raise DataError(f"pad is {pad!r}; expected None, {' or '.join(map(repr, PADS))}")
  if len(limits) not in (1, 2) or (limits <= 0).any():
    raise DataError(f"scale is {scale}; expected a factor above 0, or (long, short) in pixels")
  shape = image.shape[:2]
  size = scaled_size(shape, float(limits[0])) if len(limits) == 1 else fit_size(shape, limits.tolist())
  top, left = (int(v) for v in offset)
  if not (0 <= top < size[0] and 0 <= left < size[1]):
    raise DataError(f"offset is {(top, left)}, outside of the scaled picture, which is {size[0]}x{size[1]}")
  geometry = Geometry(size, top=top, left=left, flip=bool(flip))
  place = dict(crop_size=(height, width), pad=pad or "after_flip")
  picture, ids = apply_geometry(image, label, geometry, fill=fill, **place)
  top, left, bottom, right = filled_box(geometry, **place)
  box = np.s_[top:bottom, left:right]
  if len(color_draws):
    # All of the crop, so that pictures of any size share a compilation.
    changed = np.asarray(_apply_color(picture[None], parse_draws(color_draws)))[0]
    picture = picture.copy()  # it may be a view of the caller's
    picture[box] = changed[box]
  return (picture, ids) if pad else (picture[box], ids[box])


def parse_draws(numbers: Sequence[float | int] | Float[np.ndarray, "_"]) -> color.ColorDraws:
  """One picture's draws from numbers in the order in which mmsegmentation draws them.

  Brightness, coin "contrast first", [contrast], saturation, hue, [contrast]; brightness,
  contrast, saturation and hue are a coin (0 or 1) and, where it is 1, a value.

  Raises:
    DataError: too few numbers or too many.
  """
  left = [float(number) for number in numbers]

  def take() -> float:
    if not left:
      raise DataError(f"the {len(numbers)} colour draws {list(numbers)} end too early; see parse_draws")
    return left.pop(0)

  def step(neutral: float) -> tuple[bool, float]:
    return (True, take()) if take() else (False, neutral)

  brightness = step(0.0)
  first = bool(take())
  contrast = step(1.0) if first else None
  saturation, hue = step(1.0), step(0.0)
  contrast = contrast or step(1.0)
  if left:
    raise DataError(f"of the {len(numbers)} colour draws, {len(left)} are left over; see parse_draws")
  values = (brightness, contrast, saturation, hue)
  on, (brightness, contrast, saturation, hue) = zip(*values, strict=True)
  return color.ColorDraws(
    apply_brightness=np.array([on[0]]),
    brightness=np.array([brightness], np.float32),
    apply_contrast=np.array([on[1]]),
    contrast=np.array([contrast], np.float32),
    contrast_first=np.array([first]),
    apply_saturation=np.array([on[2]]),
    saturation=np.array([saturation], np.float32),
    apply_hue=np.array([on[3]]),
    hue=np.array([int(hue)], np.int32),
  )
