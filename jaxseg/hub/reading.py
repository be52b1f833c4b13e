"""An image as `Net` takes it: an array, the path of a file, or a PIL image."""

import io
import os
import pathlib
from typing import Any

import numpy as np

from jaxseg import lazy
from jaxseg.errors import UserError, printable
from jaxseg.types import AnyArray, Preprocess

_RGB = Preprocess()


def read_image(image: Any, *, preprocess: Preprocess = _RGB) -> AnyArray:
  """An image as `predict` wants it, from an array, the path of a file, or a PIL image.

  Files may be TIFF of many bands, or arrays that NumPy saved.

  Args:
    image: the array, path or image.
    preprocess: tells how many channels it has to have (grey and palette files become RGB), and the range of
      values of images with more than 8 bits.

  Raises:
    UserError: no image file, or an array of another kind.
  """
  channels, value_range = preprocess.channels, preprocess.value_range
  if isinstance(image, str | os.PathLike):
    image = _read_file(image, channels, value_range)
  elif not hasattr(image, "dtype") and hasattr(image, "convert"):
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    deep = channels != 3 or image.mode.startswith(("I", "F"))
    image = np.asarray(image if deep or image.mode == "RGB" else image.convert("RGB"))
    if deep and channels == 3:
      image = np.repeat(image[..., None], 3, axis=-1)
  if not hasattr(image, "dtype"):
    raise UserError(
      f"image is a {type(image).__name__}; expected a uint8 array h w 3, the path of a file, or a PIL image"
    )
  if channels == 1 and image.ndim == 2:
    image = image[..., None]
  _check_shape(image, channels)
  if image.dtype == np.uint8:
    return image
  if not value_range and not np.issubdtype(image.dtype, np.integer):
    raise UserError(
      f"image is {image.dtype}, expected uint8 RGB in 0..255; predict normalises it by itself"
      " (a float picture in 0..1 becomes one by `(image * 255).round().astype('uint8')`)"
    )
  return lazy.load("jaxseg.data.reading").to_eight_bits(np.asarray(image), "image", value_range)


def _read_file(path: str | os.PathLike, channels: int, value_range: tuple[float, ...]) -> np.ndarray:
  from PIL import Image, ImageOps

  name, reading = printable(os.fspath(path)), lazy.load("jaxseg.data.reading")
  try:
    data = pathlib.Path(path).read_bytes()
    if channels != 3 or reading.needs_rule(data):
      return reading.read_image(data, name, reading.Rule(value_range, channels=channels))
    with Image.open(io.BytesIO(data)) as opened:
      opened.load()
      ImageOps.exif_transpose(opened, in_place=True)
  except UserError:
    raise
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise UserError(f"{name} cannot be read as an image ({type(error).__name__})") from None
  return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))


def _check_shape(image: AnyArray, channels: int) -> None:
  shape = tuple(image.shape)
  if channels != 3 and (image.ndim != 3 or shape[-1] != channels):
    raise UserError(
      f"image has shape {shape}, but this model takes {channels} channels: height, width, {channels}"
    )
  if channels == 3 and (image.ndim == 2 or (image.ndim == 3 and shape[-1] == 1)):
    raise UserError(f"image has shape {shape}, a grey picture; repeat it to three channels: h w 3")
  if image.ndim == 4:
    raise UserError(f"image has shape {shape}, a batch; predict takes one picture h w 3: image[0]")
  if channels == 3 and (image.ndim != 3 or shape[-1] != 3):
    raise UserError(f"image has shape {shape}, expected RGB as height, width, 3")
