"""Few sizes of the network's input for a split of many, and what can be known of them before anything runs.

XLA compiles a network for each input size, minutes each on an accelerator. The evaluations in the course
of a training run may pad images to a few canvases (`InferenceRule.canvas_sides`); padding changes what a
network computes near its border, so that published scores are those of the exact rule.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from jaxseg.errors import UserError
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.sharding import BATCH_AXES

MOST_CANVASES = 8
LEAST_SIDE = 32  # what every encoder accepts
MOST_PIXELS = 1 << 28  # of one network input: 3 GB of float32 before the first layer

_STEP = 32


def pad_to_canvases(
  rule: InferenceRule, sizes: Iterable[tuple[int, int]], *, most: int = MOST_CANVASES
) -> InferenceRule:
  """The rule whose network inputs of all `sizes` (rows, columns) have at most `most` shapes.

  `rule` itself where that is so already, and for sliding windows, which share their code by their grid.
  Sides are rounded up to the least step, 32 pixels times a power of two, with which the shapes are so few.
  """
  sizes = set(map(tuple, sizes))
  extents = {rule.extent(rule.resized(size, scale)) for size in sizes for scale in rule.scales}
  if rule.mode == "slide" or len(extents) <= most:
    return rule
  unit = math.lcm(_STEP, rule.multiple or 1)
  step = unit
  while True:
    sides = tuple(tuple(sorted(_rounded([e[axis] for e in extents], step, unit))) for axis in (0, 1))
    padded = dataclasses.replace(rule, canvas_sides=sides)
    if len({padded.extent(rule.resized(s, scale)) for s in sizes for scale in rule.scales}) <= most:
      return padded
    step *= 2


def _rounded(sides: Sequence[int], step: int, unit: int) -> set[int]:
  largest = -(-max(sides) // unit) * unit
  return {min(-(-side // step) * step, largest) for side in sides}


def spread_batch(batch_size: int, mesh: Mesh | AbstractMesh | None) -> int:
  """Images of an evaluation batch: `batch_size`, or the next number that the device groups share evenly.

  A device then holds no more images than it would have held of a batch that divides.
  """
  if mesh is None:
    return batch_size
  groups = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  return -(-batch_size // groups) * groups


def check_sizes(
  rule: InferenceRule, sizes: Sequence[tuple[int, int]], *, names: Any = None, split: str
) -> None:
  """Raises UserError where an image of the split cannot go through a network by the rule.

  Args:
    rule: the test-time rule.
    sizes: (rows, columns) of every image.
    names: of the images, by index; None calls them by their number.
    split: for the message.
  """
  if rule.mode == "slide" and min(rule.crop_size) < LEAST_SIDE:
    raise UserError(
      f"config.eval.crop_size is {rule.crop_size}; windows have to be at least"
      f" {LEAST_SIDE}x{LEAST_SIDE} pixels"
    )
  seen = set()
  for index, size in enumerate(sizes):
    if size in seen:
      continue
    seen.add(size)
    name = f"image {index}" if names is None else f"image {names[index]}"
    for scale in rule.scales:
      height, width = rule.extent(rule.resized(size, scale))
      is_scaled = f", at config.eval.scales {scale:g}" if scale != 1.0 else ""
      if min(height, width) < LEAST_SIDE:
        raise UserError(
          f"{name} of split {split!r} is {size[0]}x{size[1]} (height x width){is_scaled} and would reach the"
          f" network as {height}x{width}; it needs at least {LEAST_SIDE}x{LEAST_SIDE}: remove the image, or"
          " set config.eval.resize or config.eval.multiple"
        )
      if rule.mode == "whole" and height * width > MOST_PIXELS:
        raise UserError(
          f"{name} of split {split!r} is {size[0]}x{size[1]} (height x width){is_scaled} and would reach the"
          f" network as {height}x{width}, which no device holds; lower config.eval.scales, resize or"
          " multiple, or set config.eval.mode=slide"
        )
