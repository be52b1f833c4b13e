"""Scenes drawn on the fly: overlapping shapes whose class is their texture, never their colour.

Each shape takes two colours of a palette that all classes share, so a pixel alone says
next to nothing about its class; the pattern around it does. A scene is a pure function
of (seed, split, index), in integer arithmetic, so it is the same on every machine.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxseg.data.source import DataError, DatasetInfo, color_map, make_info
from jaxseg.types import IGNORE_LABEL

# Classes 0 to 7; further classes repeat all patterns but the first with wider spacing.
PATTERNS = ("plain", "rows", "columns", "diagonal", "checker", "dots", "grain", "bricks")
PALETTE = (
  (222, 222, 222), (66, 135, 245), (240, 128, 60), (126, 87, 194),
  (38, 166, 111), (245, 200, 66), (160, 110, 85), (216, 67, 102),
)  # fmt: skip
# Pixel colours: the same for all classes, far enough apart that any two make a visible pattern.
COLORS = (
  (38, 50, 86), (58, 110, 165), (110, 178, 205), (232, 220, 190), (240, 178, 92), (214, 98, 72),
  (140, 52, 70), (84, 130, 92), (166, 190, 120), (120, 96, 150), (226, 160, 172), (92, 74, 62),
)  # fmt: skip
OUTLINE = (24, 22, 28)
_CONTRAST = 150  # least sum of channel differences between a pattern's two colours
MIN_CLASSES = 6
SEED = 20240  # fixes the scenes; every split draws from its own stream
STREAMS = {"train": 0, "val": 1, "test": 2}

# Unit vectors in steps of 15 degrees, times 1024: written out, since the last bit of sin differs by libm.
_DIRECTIONS = (
  (1024, 0), (989, 265), (887, 512), (724, 724), (512, 887), (265, 989),
  (0, 1024), (-265, 989), (-512, 887), (-724, 724), (-887, 512), (-989, 265),
)  # fmt: skip


def info(config_data: Any) -> DatasetInfo:
  """`config_data.classes` when given (any 6 to 255 names), else the eight patterns."""
  classes = tuple(config_data.classes) or PATTERNS
  if len(classes) < MIN_CLASSES:
    raise DataError(f"synthetic: {len(classes)} classes; give at least {MIN_CLASSES} names or none")
  palette = PALETTE[: len(classes)] if len(classes) <= len(PALETTE) else color_map(len(classes))
  return make_info("synthetic", classes, palette)


def open_split(config_data: Any, split: str) -> "SyntheticSource":
  """Reads `image_size`, `num_train`, `num_val` and `classes`; "test" is as long as "val"."""
  length, size = split_settings("synthetic", config_data, split)
  return SyntheticSource(split, length, size, info(config_data).num_classes)


def split_settings(name: str, config_data: Any, split: str) -> tuple[int, tuple[int, int]]:
  """How many images the split of a drawn data set called `name` has, and their (h, w).

  Raises:
    DataError: no such split, too few or too small images.
  """
  if split not in STREAMS:
    raise DataError(f"{name} has no split {split!r}; it has {', '.join(sorted(STREAMS))}")
  field = "num_train" if split == "train" else "num_val"
  length = config_data.num_train if split == "train" else config_data.num_val
  size = tuple(config_data.image_size)
  if len(size) != 2 or min(size) < 16:
    raise DataError(f"{name}: data.image_size is {size}; expected (height, width), each at least 16")
  if length < 1:
    raise DataError(f"{name}: split {split!r} has {length} examples; set data.{field} to at least 1")
  return length, size


def draw_scene(
  seed: int, stream: int, index: int, *, size: tuple[int, int], num_classes: int
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
  """One scene: RGB image, and label with 255 on the outlines between shapes."""
  rng = np.random.default_rng((seed, stream, index))
  h, w = size
  y, x = np.ogrid[:h, :w]
  y, x = y.astype(np.int32), x.astype(np.int32)
  count = int(rng.integers(5, 9))
  owner = np.zeros(size, np.int8)
  for shape in range(1, count):
    owner[_region(rng, y, x)] = shape
  # Neighbouring shapes differ in class: sampled without replacement where the classes suffice.
  kinds = rng.permutation(num_classes)[np.arange(count) % num_classes]

  # Every pixel is first an index into the scene's colours: two of each shape.
  index_map = np.empty(size, np.uint8)
  colors = np.concatenate([_two_colors(rng) for _ in range(count)])
  for shape in range(count):
    on = _pattern(rng, y, x, kind=int(kinds[shape]), num_classes=num_classes)
    np.copyto(index_map, on + np.uint8(2 * shape), where=owner == shape)
  label = kinds.astype(np.uint8)[owner]

  image = colors[index_map]
  image += rng.integers(-10, 11, size=(h, w, 1), dtype=np.int16)  # sensor noise
  image = (image.astype(np.int32) * int(rng.integers(205, 282))) >> 8  # exposure
  edge = np.zeros(size, bool)
  across, down = owner[:, 1:] != owner[:, :-1], owner[1:] != owner[:-1]
  edge[:, 1:] |= across
  edge[:, :-1] |= across
  edge[1:] |= down
  edge[:-1] |= down
  image[edge] = OUTLINE
  label[edge] = IGNORE_LABEL
  return np.clip(image, 0, 255).astype(np.uint8), label


def draw_texture(
  seed: int, stream: int, index: int, *, size: tuple[int, int], num_classes: int
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
  """One class's texture all over an RGB image, and the class: a scene for image classifiers."""
  rng = np.random.default_rng((seed, stream, index))
  y, x = (axis.astype(np.int32) for axis in np.ogrid[: size[0], : size[1]])
  label = int(rng.integers(num_classes))
  on = _pattern(rng, y, x, kind=label, num_classes=num_classes)
  image = _two_colors(rng)[on.astype(np.uint8)]
  image = image + rng.integers(-10, 11, size=(*size, 1), dtype=np.int16)  # sensor noise
  image = (image.astype(np.int32) * int(rng.integers(205, 282))) >> 8  # exposure
  return np.clip(image, 0, 255).astype(np.uint8), label


def _region(
  rng: np.random.Generator, y: Int[np.ndarray, "h 1"], x: Int[np.ndarray, "1 w"]
) -> Bool[np.ndarray, "h w"]:
  """A rotated rectangle, ellipse or triangle, about a third of the image across."""
  h, w = y.shape[0], x.shape[1]
  side = min(h, w)
  cy, cx = int(rng.integers(0, h)), int(rng.integers(0, w))
  # Half lengths along the two axes.
  a, b = (int(v) for v in rng.integers(side * 3 // 16, side * 7 // 16, size=2))
  c, s = _DIRECTIONS[int(rng.integers(len(_DIRECTIONS)))]
  # Coordinates along and across, in 1/1024 pixel; 64 bits, since the ellipse squares them.
  dy, dx = (y - cy).astype(np.int64), (x - cx).astype(np.int64)
  u, v = np.abs(dx * c + dy * s), dy * c - dx * s
  form = int(rng.integers(3))
  if form == 0:
    return (u <= a << 10) & (np.abs(v) <= b << 10)
  if form == 1:
    return (u * b) ** 2 + (v * a) ** 2 <= (a * b << 10) ** 2
  return (v <= b << 10) & (2 * u * b <= a * (v + (b << 10)))


def _two_colors(rng: np.random.Generator) -> Int[np.ndarray, "2 3"]:
  """A random colour, and the next one in a random order that stands out from it."""
  order = np.array(COLORS, np.int16)[rng.permutation(len(COLORS))]
  distance = np.abs(order - order[0]).sum(axis=-1)
  return order[[0, int(np.argmax(distance >= _CONTRAST))]]


def _pattern(
  rng: np.random.Generator,
  y: Int[np.ndarray, "h 1"],
  x: Int[np.ndarray, "1 w"],
  *,
  kind: int,
  num_classes: int,
) -> Bool[np.ndarray, "h w"]:
  """Where the pattern of class `kind`, laid over the whole canvas, shows its second colour."""
  further = kind - len(PATTERNS)
  name = PATTERNS[kind] if further < 0 else PATTERNS[1 + further % (len(PATTERNS) - 1)]
  if num_classes <= len(PATTERNS):
    half = int(rng.integers(3, 5))  # the spacing is free
  else:  # the spacing tells classes of one pattern apart
    half = 3 if further < 0 else 4 + further // (len(PATTERNS) - 1)
  period = 2 * half
  y, x = y + int(rng.integers(64 * period)), x + int(rng.integers(64 * period))
  if name == "plain":
    on = np.zeros((y.shape[0], x.shape[1]), bool)
  elif name == "rows":
    on = (y // half + 0 * x) & 1 == 1
  elif name == "columns":
    on = (x // half + 0 * y) & 1 == 1
  elif name == "diagonal":
    lean = 1 if rng.integers(2) else -1  # both, since images are flipped
    on = ((x + lean * y) // half) & 1 == 1
  elif name == "checker":
    on = (x // half + y // half) & 1 == 1
  elif name == "dots":
    dy, dx = y % period - half, x % period - half
    on = 5 * (dy * dy + dx * dx) <= 2 * half * half
  elif name == "grain":
    cell = max(half - 1, 1)
    shape = (y.shape[0] // cell + 2, x.shape[1] // cell + 2)
    grains = rng.integers(2, size=shape, dtype=np.uint8).astype(bool)
    on = grains[(y - y[0, 0]) // cell, (x - x[0, 0]) // cell]
  else:  # bricks: joints one pixel wide, every second course shifted
    course = y // period
    on = (y % period == 0) | ((x + course * period) % (2 * period) == 0)
  return on


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
  """One split of scenes, or of what else `draw` makes; see `jaxseg.data.source.Source`."""

  split: str
  length: int
  shape: tuple[int, int]
  num_classes: int
  draw: Callable[..., tuple[UInt8[np.ndarray, "h w 3"], Any]] = draw_scene

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self.length:
      raise IndexError(f"index {index} is outside the {self.length} examples of split {self.split!r}")
    stream = STREAMS[self.split]
    image, label = self.draw(SEED, stream, index, size=self.shape, num_classes=self.num_classes)
    return {"image": image, "label": label, "id": f"{self.split}-{index:06d}"}

  def size(self, index: int) -> tuple[int, int]:
    """(h, w), the same for every index."""
    return self.shape
