"""An image as `Net` takes it: an array, the path of a file, or a PIL image."""

import os
from typing import Any

import numpy as np

from jaxseg import lazy
from jaxseg.errors import UserError, printable
from jaxseg.types import AnyArray


def read_image(image: Any, *, channels: int = 3) -> AnyArray:
  """An image as `predict` wants it, from an array, the path of a file, or a PIL image.

  Files of other channels than three may be TIFF of many bands, or arrays that NumPy saved.

  Raises:
    UserError: no image file, or an array of another kind.
  """
  if isinstance(image, str | os.PathLike) and channels != 3:
    try:
      with open(image, "rb") as file:
        data = file.read()
    except OSError as error:
      raise UserError(f"{printable(os.fspath(image))} cannot be read ({error.strerror})") from None
    image = lazy.load("jaxseg.data.reading").read_bands(data, printable(os.fspath(image)), channels)
  elif isinstance(image, str | os.PathLike):
    from PIL import Image, ImageOps

    try:
      with Image.open(image) as opened:
        opened.load()
        ImageOps.exif_transpose(opened, in_place=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
      kind = type(error).__name__
      raise UserError(f"{printable(os.fspath(image))} cannot be read as an image ({kind})") from None
    image = _rgb(opened, printable(os.fspath(image)))
  elif not hasattr(image, "dtype") and hasattr(image, "convert"):
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    image = np.asarray(image) if channels != 3 else _rgb(image, "the PIL image")
  if not hasattr(image, "dtype"):
    raise UserError(
      f"image is a {type(image).__name__}; expected a uint8 array h w 3, the path of a file, or a PIL image"
    )
  if channels == 1 and image.ndim == 2:
    image = image[..., None]
  _check_picture(image, channels)
  return image


def _rgb(image: Any, name: str) -> np.ndarray:
  if image.mode.startswith(("I", "F")):
    # Pillow would clip such values to 255 instead of scaling them.
    raise UserError(
      f"{name} has pixels of mode {image.mode}, expected 8 bits a channel; scale them to 0..255 first"
    )
  return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_picture(image: AnyArray, channels: int) -> None:
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
  if image.dtype != np.uint8:
    raise UserError(
      f"image is {image.dtype}, expected uint8 RGB in 0..255; predict normalises it by itself"
      " (a float picture in 0..1 becomes one by `(image * 255).round().astype('uint8')`)"
    )
