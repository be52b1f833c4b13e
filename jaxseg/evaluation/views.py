"""Host side of a test-time rule: pictures → views of equal size, and the way back to the label's size.

OpenCV is imported where a picture is resized, so that everything else needs the core dependencies only.
"""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg import lazy
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.ops.resize import interpolation_matrix
from jaxseg.types import IGNORE_LABEL, Batch

# Labels are filled up to a multiple of this, so that few sizes are compiled.
BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Grouping:
  """How `jaxseg.data.eval_batches` makes a rule's batches, in its reading threads.

  Pictures of equal `key` share a batch, whatever their own sizes.
  """

  rule: InferenceRule

  def key(self, size: tuple[int, int]) -> Hashable:
    """What pictures of one batch have in common."""
    return self.rule.key(size)

  def collate(
    self, examples: Sequence[Mapping[str, Any]], *, sizes: Sequence[tuple[int, int]], count: int
  ) -> Batch:
    """`collate` of the rule."""
    return collate(self.rule, examples, sizes=sizes, count=count)


def collate(
  rule: InferenceRule,
  examples: Sequence[Mapping[str, Any]],
  *,
  sizes: Sequence[tuple[int, int]],
  count: int,
  results: Sequence[tuple[int, int]] | None = None,
) -> Batch:
  """`examples`, which share `rule.key`, as one batch of `count` rows.

  Args:
    rule: how pictures are resized and padded.
    examples: {"image": uint8 h w 3, and where known "label": h w, "id"}, each of its own size.
    sizes: (rows, columns) of every picture of the batch, also of those that other processes
      read: they decide the batch's shapes.
    count: rows of the result; the missing ones are black, with no label and the id "".
    results: sizes to which each example's logits are brought, where they are not the pictures'.

  Returns:
    For each scale i `view{i}`, uint8 b h w 3 (h w is the canvas), `view{i}_size`, int32 b 2, the
    part of it that is picture, and `view{i}_kept`, bool b, whether all of `sizes` are kept by
    the scale; "label" int32 b Y X, filled with 255; "size" int32 b 2, of the result; "id".
  """
  bounds = sizes if results is None else results
  bucket = tuple(-(-max(size[axis] for size in bounds) // BUCKET) * BUCKET for axis in (0, 1))
  own = [tuple(np.shape(example["image"])[:2]) for example in examples]
  wanted = list(own) if results is None else [tuple(size) for size in results[: len(own)]]
  wanted += [tuple(bounds[0])] * (count - len(wanted))
  own += [tuple(sizes[0])] * (count - len(own))
  batch = {
    "label": np.full((count, *bucket), IGNORE_LABEL, np.int32),
    "size": np.asarray(wanted, np.int32),
    "id": np.array([str(e.get("id", i)) for i, e in enumerate(examples)] + [""] * (count - len(examples))),
  }
  for row, example in enumerate(examples):
    if "label" in example:
      batch["label"][row, : wanted[row][0], : wanted[row][1]] = example["label"]
  for i, (scale, canvas) in enumerate(zip(rule.scales, rule.key(sizes[0]), strict=True)):
    channels = np.shape(examples[0]["image"])[2] if len(examples) else 3
    view = np.zeros((count, *canvas, channels), np.uint8)
    view_size = np.asarray([rule.resized(size, scale) for size in own], np.int32)
    for row, example in enumerate(examples):
      h, w = view_size[row]
      view[row, :h, :w] = resize_picture(np.asarray(example["image"]), rule.steps(own[row], scale))
    kept = all(rule.resized(size, scale) == tuple(to) for size, to in zip(sizes, bounds, strict=True))
    batch |= {f"view{i}": view, f"view{i}_size": view_size, f"view{i}_kept": np.full(count, kept)}
  return batch


def collate_batch(rule: InferenceRule, batch: Batch) -> Batch:
  """A batch of pictures of one size, {"image": uint8 b h w 3, ...}, as `collate` gives it.

  The result has the size of "label", else each picture's "size" (rows and columns), else its own.
  """
  count, size = len(batch["image"]), tuple(batch["image"].shape[1:3])
  examples = [{name: batch[name][row] for name in batch} for row in range(count)]
  results = [size] * count
  if "label" in batch:
    results = [tuple(batch["label"].shape[1:3])] * count
  elif "size" in batch:
    results = [tuple(np.asarray(one).tolist()) for one in batch["size"]]
  return collate(rule, examples, sizes=[size] * count, count=count, results=results)


def resize_picture(
  image: UInt8[np.ndarray, "_ _ c"], steps: Sequence[tuple[int, int]]
) -> UInt8[np.ndarray, "_ _ c"]:
  """Bilinear resizes of an 8-bit picture to each of `steps` (rows, columns) in turn, OpenCV's rounding."""
  for rows, columns in steps:
    if image.shape[:2] != (rows, columns):
      cv2 = lazy.load("cv2")
      resized = cv2.resize(np.ascontiguousarray(image), (columns, rows), interpolation=cv2.INTER_LINEAR)
      image = resized.reshape(rows, columns, -1)  # OpenCV drops the only channel of a grey image
  return image


def ways_back(
  rule: InferenceRule,
  batch: Batch,
  view: int,
  logits_size: tuple[int, int],
  *,
  flipped: bool,
  align_corners: bool,
) -> dict[str, Float[np.ndarray, "b _ _"]] | None:
  """{"rows": b Y i, "columns": b X j}: what brings a view's logits to the pictures' own sizes.

  None where nothing is to be done.

  They do what the references do in turn: logits → network's input → padding cut off (→ mirrored
  back) → result's size. Rows beyond that are zero.
  """
  own, inside = batch["size"], batch[f"view{view}_size"]
  whole = rule.mode == "whole"
  if not whole and batch[f"view{view}_kept"].all():
    return None
  matrices = {}
  for axis, name in enumerate(("rows", "columns")):
    ways = []
    for picture, part in zip(own[:, axis].tolist(), inside[:, axis].tolist(), strict=True):
      # Sliding windows give logits of the canvas itself, mirrored back already.
      extent = rule.extent((part, part))[axis] if whole else None
      mirror = whole and flipped and name == "columns"
      rows = batch["label"].shape[1 + axis]
      ways.append(_way_back(picture, part, extent, logits_size[axis], rows, align_corners, mirror))
    matrices[name] = np.stack(ways)
  return matrices


@functools.lru_cache(maxsize=512)
def _way_back(
  picture: int, part: int, extent: int | None, logits: int, rows: int, align_corners: bool, mirror: bool
) -> np.ndarray:
  if extent is None:
    matrix = np.eye(part, logits, dtype=np.float32)
  else:
    matrix = interpolation_matrix(extent, logits, align_corners=align_corners)[:part]
  if mirror:
    matrix = matrix[::-1]
  if part != picture:
    matrix = interpolation_matrix(picture, part, align_corners=align_corners) @ matrix
  return np.pad(matrix, [(0, rows - picture), (0, 0)])
