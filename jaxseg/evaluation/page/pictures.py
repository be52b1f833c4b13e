"""Pictures of a report: an image with its label, prediction and errors; the confusion matrix, IoU by class.

OpenCV, Pillow and matplotlib are imported where a picture is made.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8

from jaxseg import lazy
from jaxseg.data.source import as_rgb
from jaxseg.evaluation.page.choice import Chosen
from jaxseg.types import IGNORE_LABEL

_WIDTH = 560  # pixels at most
_JPEG_QUALITY = 80
_WRONG = (214, 40, 40)
_NO_LABEL = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Example:
  """An image as a report shows it; pictures are `data:` addresses.

  Attributes:
    chosen: why it is shown.
    name: its id.
    layers: (name, address) of the pictures, all of one size.
    size: width and height of the pictures.
    right: share of its labelled pixels that are right.
    why: caption in place of the score.
  """

  chosen: Chosen
  name: str
  layers: tuple[tuple[str, str], ...]
  size: tuple[int, int]
  right: float
  why: str = ""


def make_example(
  chosen: Chosen,
  name: str,
  image: UInt8[np.ndarray, "h w c"],
  label: Integer[np.ndarray, "h w"],
  predictions: Sequence[tuple[str, Integer[np.ndarray, "h w"]]],
  palette: UInt8[np.ndarray, "k 3"],
  *,
  ignore_label: int = IGNORE_LABEL,
) -> Example:
  """Shrunk to at most 560 pixels of width: image, label, then each prediction and its errors.

  Args:
    chosen: why it is shown.
    name: its id.
    image: of any size.
    label: of the image's size.
    predictions: ("prediction", label map); several, where models are compared.
    palette: of the classes.
    ignore_label: drawn black.
  """
  cv2 = lazy.load("cv2")
  image = as_rgb(image)
  width = min(image.shape[1], _WIDTH)
  size = (width, max(round(image.shape[0] * width / image.shape[1]), 1))
  small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
  nearest = lambda x: cv2.resize(  # noqa: E731
    np.ascontiguousarray(x, np.int32), size, interpolation=cv2.INTER_NEAREST
  )
  known = lambda x: (x >= 0) & (x < len(palette)) & (x != ignore_label)  # noqa: E731
  truth = nearest(label)
  layers = [("image", _jpeg(small)), ("label", _colours(truth, known(truth), palette))]
  for title, prediction in predictions:
    found = nearest(prediction)
    errors = "error" if title == "prediction" else f"{title}, error"
    layers.append((title, _colours(found, known(found), palette)))
    layers.append((errors, _jpeg(_errors(small, known(truth), truth == found))))
  labelled = known(label)
  right = np.count_nonzero(labelled & (label == predictions[0][1])) / max(np.count_nonzero(labelled), 1)
  return Example(chosen, name, tuple(layers), size, right)


def matrix_picture(matrix: Integer[np.ndarray, "k k"], classes: Sequence[str]) -> UInt8[np.ndarray, "_ _ 3"]:
  """The confusion matrix as shares of the truth, for TensorBoard; names up to 40 classes."""
  shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  figure, axes = _figure((7.5, 6.5))
  shown = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues", interpolation="nearest")
  axes.set(xlabel="prediction", ylabel="truth")
  if len(classes) <= 40:
    names = [_plain(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
  figure.colorbar(shown, label="share of the truth")
  return _drawn(figure)


def iou_picture(scores: Float[np.ndarray, "k"], classes: Sequence[str]) -> UInt8[np.ndarray, "_ _ 3"]:
  """IoU of every class as bars, for TensorBoard."""
  figure, axes = _figure((7.0, min(max(2.0, 0.22 * len(classes)), 30.0)))
  places = np.arange(len(classes))
  axes.barh(places, np.nan_to_num(scores))
  axes.set_yticks(places, [_plain(name) for name in classes], fontsize=7)
  axes.set(xlim=(0, 1), xlabel="IoU", ylim=(len(classes) - 0.5, -0.5))
  axes.grid(axis="x", alpha=0.4)
  return _drawn(figure)


def _figure(size):
  figure = lazy.load("matplotlib.figure").Figure(figsize=size, dpi=100, layout="constrained")
  lazy.load("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
  return figure, figure.add_subplot()


def _drawn(figure) -> np.ndarray:
  figure.canvas.draw()
  return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def _plain(name: str) -> str:
  """Without the dollar signs that matplotlib takes for formulas."""
  return str(name)[:24].replace("$", r"\$")


def _errors(image, labelled, right):
  """The image in grey, with wrong pixels red and those without a label dark."""
  grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1) * 0.55 + 90
  grey[labelled & ~right] = 0.25 * grey[labelled & ~right] + 0.75 * np.array(_WRONG)
  grey[~labelled] *= 0.3
  return np.clip(grey, 0, 255).astype(np.uint8)


def _colours(ids, known, palette) -> str:
  """A palette PNG: small, and no colour is mixed."""
  pillow = lazy.load("PIL.Image")
  picture = pillow.fromarray(np.where(known, ids, 255).astype(np.uint8))
  colours = np.zeros((256, 3), np.uint8)
  colours[: len(palette)] = palette
  colours[255] = _NO_LABEL
  picture.putpalette(colours.reshape(-1).tolist())
  data = io.BytesIO()
  picture.save(data, format="PNG", optimize=True)
  return _address(data.getvalue(), "image/png")


def _jpeg(image) -> str:
  cv2 = lazy.load("cv2")
  bgr = np.ascontiguousarray(image[..., ::-1])
  data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
  return _address(data.tobytes(), "image/jpeg")


def _address(data: bytes, kind: str) -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"
