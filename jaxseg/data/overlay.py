"""A sheet of pictures with their labels laid over them: whether the two belong together, at a glance."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Integer, UInt8

from jaxseg.data.source import DatasetInfo, as_rgb
from jaxseg.types import IGNORE_LABEL

_COLUMNS = 4
_WIDTH, _HEIGHT = 320, 240  # of a picture's place
_CAPTION = 20
_GAP = 8
_SWATCH = 14
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT = dict(fontScale=0.4, color=(40, 40, 40), thickness=1, lineType=cv2.LINE_AA)


def sheet(examples: Sequence[dict[str, Any]], info: DatasetInfo) -> UInt8[np.ndarray, "_ _ 3"]:
  """Up to eight in two rows, RGB: each with its label half transparent, its id, and below all a legend.

  Pixels without a label keep the picture's own colours. An example whose "label" is
  a number shows its class in the caption.
  """
  info, nothing = info.drawn, 0 if info.multi_label else None
  cells = [_cell(example, info, nothing) for example in examples]
  rows = -(-len(cells) // _COLUMNS)
  width = _COLUMNS * (_WIDTH + _GAP) + _GAP
  cell_height = _HEIGHT + _CAPTION + _GAP
  present = sorted({int(i) for e in examples for i in np.unique(e["label"]) if i < info.num_classes})
  masks = all(np.ndim(example["label"]) for example in examples)
  legend = _legend(present if masks else [], info, width)  # else the captions have the classes
  canvas = _blank(rows * cell_height + _GAP, width)
  for i, cell in enumerate(cells):
    top, left = _GAP + i // _COLUMNS * cell_height, _GAP + i % _COLUMNS * (_WIDTH + _GAP)
    canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
  return np.concatenate([canvas, legend])


def blend(
  image: UInt8[np.ndarray, "h w 3"],
  label: Integer[np.ndarray, "h w"],
  info: DatasetInfo,
  nothing: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
  """Half picture, half the colour of the class; where there is no label, or `nothing`, the picture."""
  shown = (label != IGNORE_LABEL) & (label < info.num_classes)
  if nothing is not None:
    shown &= label != nothing
  colors = info.palette[np.where(shown, label, 0)]
  mixed = (image.astype(np.uint16) + colors + 1) // 2
  return np.where(shown[..., None], mixed, image).astype(np.uint8)


def _cell(example: dict[str, Any], info: DatasetInfo, nothing: int | None) -> UInt8[np.ndarray, "_ _ 3"]:
  image, label = as_rgb(example["image"]), example["label"]
  scale = min(_WIDTH / image.shape[1], _HEIGHT / image.shape[0])
  size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
  shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
  caption = str(example["id"])
  if np.ndim(label):
    shown = blend(shown, cv2.resize(label, size, interpolation=cv2.INTER_NEAREST), info, nothing)
  else:
    caption = f"{info.classes[int(label)]}: {caption}"
  cell = _blank(_HEIGHT + _CAPTION, _WIDTH)
  cell[: size[1], : size[0]] = shown
  cv2.putText(cell, caption[:48], (0, size[1] + _CAPTION - 6), _FONT, **_TEXT)
  return cell


def _legend(present: Sequence[int], info: DatasetInfo, width: int) -> UInt8[np.ndarray, "_ {width} 3"]:
  columns = 6
  step = (width - _GAP) // columns
  canvas = _blank(-(-len(present) // columns) * (_SWATCH + 6) + _GAP, width)
  for i, label in enumerate(present):
    top, left = i // columns * (_SWATCH + 6), _GAP + i % columns * step
    canvas[top : top + _SWATCH, left : left + _SWATCH] = info.palette[label]
    cv2.putText(canvas, info.classes[label][:26], (left + _SWATCH + 6, top + _SWATCH - 3), _FONT, **_TEXT)
  return canvas


def _blank(height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
  return np.full((height, width, 3), 255, np.uint8)
