"""The picture that shows a model at work: image | label | prediction, with the classes' colours.

OpenCV is imported when a picture is made, so that evaluation needs the core dependencies only.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from jaxseg.data.source import as_rgb
from jaxseg.errors import UserError
from jaxseg.types import IGNORE_LABEL, AnyArray

_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)
_NO_LABEL = (0, 0, 0)
_GAP = 8
_HEADER = 30
_LINE = 24
_SWATCH = 16
_FONT_SIZE = 0.5
# A column is enlarged or shrunk towards this many pixels.
_COLUMN = 320


def panel(
  images: UInt8[AnyArray, "n h w c"] | Sequence[UInt8[AnyArray, "_ _ c"]],
  labels: Integer[AnyArray, "n h w"] | Sequence[Integer[AnyArray, "_ _"]],
  predictions: Integer[AnyArray, "n h w"] | Sequence[Integer[AnyArray, "_ _"]],
  palette: UInt8[AnyArray, "k 3"],
  classes: Sequence[str],
  *,
  ignore_label: int = IGNORE_LABEL,
) -> UInt8[np.ndarray, "_ _ 3"]:
  """One row an image, RGB: the image, its label, the prediction; below, the classes that occur.

  Images may differ in size; a row's columns are as wide as the widest row's.
  Pixels without a label are black in the label's picture only: the model does predict there.
  """
  images, labels, predictions = ([np.asarray(x) for x in xs] for xs in (images, labels, predictions))
  palette = np.asarray(palette, np.uint8)
  if len(palette) != len(classes):
    raise UserError(f"the palette has {len(palette)} colours for {len(classes)} classes")
  if not len(images):
    raise UserError("there are no images to show")
  fitted = []
  for image, label, prediction in zip(images, labels, predictions, strict=True):
    pictures = [
      as_rgb(image),
      _colours(label, palette, ignore_label),
      _colours(prediction, palette, ignore_label),
    ]
    fitted.append([_fit(p, interpolate=i == 0) for i, p in enumerate(pictures)])
  column = max(pictures[0].shape[1] for pictures in fitted)
  body = np.concatenate([_row(pictures, column) for pictures in fitted])
  occurring = np.unique(np.concatenate([x.reshape(-1) for x in (*labels, *predictions)]))
  entries = [(classes[i], palette[i]) for i in occurring if 0 <= i < len(classes) and i != ignore_label]
  if any(np.any(label == ignore_label) for label in labels):
    entries.append(("no label", _NO_LABEL))
  return np.concatenate([_header(body.shape[1]), body, _legend(entries, body.shape[1])])


def save_panel(
  path: str | os.PathLike,
  images: UInt8[AnyArray, "n h w c"] | Sequence[UInt8[AnyArray, "_ _ c"]],
  labels: Integer[AnyArray, "n h w"] | Sequence[Integer[AnyArray, "_ _"]],
  predictions: Integer[AnyArray, "n h w"] | Sequence[Integer[AnyArray, "_ _"]],
  palette: UInt8[AnyArray, "k 3"],
  classes: Sequence[str],
  *,
  ignore_label: int = IGNORE_LABEL,
) -> None:
  """Writes `panel` as a PNG file, local or `gs://`."""
  import cv2
  from etils import epath

  picture = panel(images, labels, predictions, palette, classes, ignore_label=ignore_label)
  png = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1]
  epath.Path(path).write_bytes(png.tobytes())


def _colours(label: np.ndarray, palette: np.ndarray, ignore_label: int) -> np.ndarray:
  shown = (label >= 0) & (label < len(palette)) & (label != ignore_label)
  return np.where(shown[..., None], palette[np.where(shown, label, 0)], np.uint8(_NO_LABEL))


def _fit(picture: np.ndarray, *, interpolate: bool) -> np.ndarray:
  """Towards `_COLUMN` wide, enlarged by whole factors; a label's colours are never mixed."""
  import cv2

  h, w = picture.shape[:2]
  if w >= _COLUMN:
    size, mode = (
      (_COLUMN, max(1, round(h * _COLUMN / w))),
      cv2.INTER_AREA if interpolate else cv2.INTER_NEAREST,
    )
  else:
    factor = max(1, round(_COLUMN / w))
    size, mode = (w * factor, h * factor), cv2.INTER_CUBIC if interpolate else cv2.INTER_NEAREST
  return cv2.resize(np.ascontiguousarray(picture), size, interpolation=mode)


def _row(pictures: list[np.ndarray], column: int) -> np.ndarray:
  h, w = pictures[0].shape[:2]
  row = _canvas(h + _GAP, len(pictures) * column + (len(pictures) + 1) * _GAP)
  for i, picture in enumerate(pictures):
    left = _GAP + i * (column + _GAP)
    row[:h, left : left + w] = picture
  return row


def _header(width: int) -> np.ndarray:
  header = _canvas(_HEADER, width)
  column = (width - _GAP) // 3
  for i, title in enumerate(("image", "label", "prediction")):
    _write(header, title, _GAP + i * column, _HEADER - 10)
  return header


def _legend(entries: Sequence[tuple[str, Any]], width: int) -> np.ndarray:
  """Swatch and name of each class, in columns as wide as the longest name needs."""
  cell = _SWATCH + 3 * _GAP + max((_text_width(name) for name, _ in entries), default=0)
  columns = max(1, (width - _GAP) // cell)
  legend = _canvas(_GAP + _LINE * -(-len(entries) // columns) + _GAP, width)
  for i, (name, colour) in enumerate(entries):
    top, left = _GAP + _LINE * (i // columns), _GAP + cell * (i % columns)
    legend[top : top + _SWATCH, left : left + _SWATCH] = colour
    _write(legend, name, left + _SWATCH + _GAP, top + _SWATCH - 3)
  return legend


def _canvas(height: int, width: int) -> np.ndarray:
  return np.full((height, width, 3), _BACKGROUND, np.uint8)


def _write(canvas: np.ndarray, text: str, left: int, base: int) -> None:
  import cv2

  font = cv2.FONT_HERSHEY_SIMPLEX
  cv2.putText(canvas, text, (left, base), font, _FONT_SIZE, _INK, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
  import cv2

  return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _FONT_SIZE, 1)[0][0]
