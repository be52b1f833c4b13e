"""How a picture reaches the network and comes back: resizing, padding, windows, scales, flips.

Only sizes are worked out here, in plain Python: what they are used for is in `views.py` (host)
and `windows.py`, `merge.py` (device). A size is (rows, columns).
"""

import dataclasses
import math

from jaxseg.errors import UserError

MODES = ("whole", "slide")
MULTIPLE_RULES = ("pad", "resize")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceRule:
  """The test-time rule of a recipe; the defaults run the network once over the picture as it is.

  In the order in which they act on a picture:

  Attributes:
    resize: (long, short), in either order: the picture is scaled, its shape kept, to be as
      large as fits, sides rounded to int(side × factor + 0.5) (mmcv). () keeps its size.
    scales: factors of that size, or of the picture's own without `resize`. With several views
      (scales, flips) their softmax at the picture's own size is averaged.
    flip: adds the mirrored picture to every scale.
    canvas_sides: (heights, widths), each ascending, or (): what is fed to the network whole is padded with
      zeros, below and right after normalisation, up to the next of these sides (`canvases.py`).
    multiple: 0, or what both sides of the network's input have to divide by.
    multiple_rule: "pad" adds zeros below and right after normalisation and cuts the logits
      back (mmsegmentation 1.x); "resize" scales up to the multiple (ResizeToMultiple,
      AlignedResize).
    mode: "whole", or "slide" for the mean of logits over overlapping windows.
    crop_size: of a window; a picture smaller than it is one window along that side.
    stride: between windows; the last one is moved back into the picture.
    threshold: probability from which on a pixel has a class, of models of several classes a pixel
      (`SegmentationModel.multi_label`); of no meaning for others.

  Raises:
    UserError: a value that makes no sense, in one sentence.
  """

  mode: str = "whole"
  crop_size: tuple[int, ...] = (0, 0)
  stride: tuple[int, ...] = (0, 0)
  resize: tuple[int, ...] = ()
  multiple: int = 0
  multiple_rule: str = "pad"
  scales: tuple[float, ...] = (1.0,)
  flip: bool = False
  canvas_sides: tuple[tuple[int, ...], ...] = ()
  threshold: float = 0.5

  def __post_init__(self):
    for name in ("crop_size", "stride", "resize", "scales"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    _check(self)

  @property
  def plain(self) -> bool:
    """Whether it is one pass over the picture as it is."""
    default = InferenceRule()
    # Without a multiple it does not matter how one would be reached.
    free = dict(multiple_rule=default.multiple_rule, threshold=default.threshold)
    return dataclasses.replace(self, **free) == default

  def text(self) -> str:
    """The rule in words, for reports."""
    parts = []
    if self.resize:
      parts.append(f"fitted into {max(self.resize)}x{min(self.resize)}")
    if self.multiple:
      how = "padded" if self.multiple_rule == "pad" else "resized"
      parts.append(f"{how} to multiples of {self.multiple}")
    if self.mode == "slide":
      crop, stride = ("x".join(map(str, sides)) for sides in (self.crop_size, self.stride))
      parts.append(f"windows of {crop} every {stride}")
    else:
      parts.append("whole pictures")
    if self.scales != (1.0,):
      parts.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
    if self.flip:
      parts.append("and mirrored")
    if self.canvas_sides:
      parts.append("padded to a few canvases")
    if self.threshold != 0.5:
      parts.append(f"threshold {self.threshold:g}")
    return ", ".join(parts)

  def resized(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
    """The size to which a picture is resized for one scale."""
    for step in self.steps(size, scale):
      size = step
    return size

  def steps(self, size: tuple[int, int], scale: float) -> list[tuple[int, int]]:
    """The sizes to which it is resized one after the other, as the references do; the last may be its own."""
    if self.resize:
      bounds = (int(max(self.resize) * scale), int(min(self.resize) * scale))
      steps = [keep_ratio(size, bounds)]
    elif scale != 1.0:
      # mmcv rounds the sides first and then fits the picture into them.
      sides = [max(1, int(side * scale + 0.5)) for side in size]
      steps = [keep_ratio(size, (max(sides), min(sides)))]
    else:
      steps = [tuple(size)]
    if self.multiple and self.multiple_rule == "resize":
      steps.append(tuple(_up(side, self.multiple) for side in steps[-1]))
    return steps

  def extent(self, resized: tuple[int, int]) -> tuple[int, int]:
    """Size of the network's whole input: `resized`, padded to multiple and canvas where that is the rule."""
    if self.multiple and self.multiple_rule == "pad":
      resized = tuple(_up(side, self.multiple) for side in resized)
    if self.canvas_sides and self.mode == "whole":
      resized = tuple(
        next((known for known in sides if known >= side), side)
        for side, sides in zip(resized, self.canvas_sides, strict=True)
      )
    return tuple(resized)

  def canvas(self, extent: tuple[int, int]) -> tuple[int, int]:
    """Size of the array that holds the input: pictures with the same canvas share compiled code.

    Windows only see the extent, so the canvas can be as large as the grid of windows reaches.
    """
    if self.mode == "whole":
      return tuple(extent)
    sides = []
    for side, crop, stride in zip(extent, self.crop_size, self.stride, strict=True):
      sides.append(side if side < crop else crop + _windows(side, crop, stride) * stride - stride)
    return tuple(sides)

  def key(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The canvases of a picture's views; pictures with equal keys can share a batch."""
    if self.plain:
      return (tuple(size),)
    return tuple(self.canvas(self.extent(self.resized(size, scale))) for scale in self.scales)


def keep_ratio(size: tuple[int, int], bounds: tuple[int, int]) -> tuple[int, int]:
  """As large as fits into (long, short) with the shape kept; mmcv's rounding."""
  factor = min(max(bounds) / max(size), min(bounds) / min(size))
  return tuple(max(1, int(side * float(factor) + 0.5)) for side in size)


def _windows(side: int, crop: int, stride: int) -> int:
  return math.ceil(max(side - crop, 0) / stride) + 1


def _up(side: int, multiple: int) -> int:
  return -(-side // multiple) * multiple


def _check(rule: InferenceRule) -> None:
  if not 0 < rule.threshold < 1:
    raise UserError(f"threshold is {rule.threshold}; expected a probability between 0 and 1, such as 0.5")
  if rule.mode not in MODES:
    raise UserError(f"mode is {rule.mode!r}; expected 'whole' or 'slide'")
  if rule.mode == "slide":
    _check_windows(rule)
  elif any(rule.crop_size) or any(rule.stride):
    raise UserError(
      f"crop_size {rule.crop_size} and stride {rule.stride} are given, but mode is 'whole', which has no"
      " windows; set mode='slide', or leave both at (0, 0)"
    )
  if rule.resize and (len(rule.resize) != 2 or min(rule.resize) < 1):
    raise UserError(
      f"resize is {rule.resize}; expected (long, short) in pixels, such as (2048, 512), or () for none"
    )
  if rule.multiple < 0:
    raise UserError(f"multiple is {rule.multiple}; expected a number of pixels such as 32, or 0 for none")
  if rule.multiple_rule not in MULTIPLE_RULES:
    raise UserError(f"multiple_rule is {rule.multiple_rule!r}; expected 'pad' or 'resize'")
  if not rule.scales or not all(math.isfinite(scale) and scale > 0 for scale in rule.scales):
    raise UserError(f"scales is {rule.scales}; expected factors above 0, such as (0.75, 1.0, 1.25)")
  if len(set(rule.scales)) < len(rule.scales):
    raise UserError(f"scales is {rule.scales}, in which a factor occurs twice; give each once")
  if rule.resize and min(rule.resize) * min(rule.scales) < 1:
    raise UserError(f"resize {rule.resize} at scale {min(rule.scales)} is less than a pixel; raise one")


def _check_windows(rule: InferenceRule) -> None:
  for name in ("crop_size", "stride"):
    value = getattr(rule, name)
    if len(value) != 2 or min(value) < 1:
      raise UserError(f"{name} is {value}; mode 'slide' expects (height, width), both at least 1 pixel")
  if any(stride > crop for stride, crop in zip(rule.stride, rule.crop_size, strict=True)):
    raise UserError(
      f"stride {rule.stride} is larger than crop_size {rule.crop_size}, so that pixels between two windows"
      " would never be seen; use at most the crop's size"
    )
