"""Anybody's image and mask files → what is stored: 8-bit RGB, and one class id a pixel.

A plain 8-bit JPEG or PNG is stored as it is. Whatever else Pillow or OpenCV reads is decoded here, once, and
stored as a PNG; what cannot be read without guessing is refused with a sentence.

Orientation: both files are read as they are displayed, their EXIF orientation applied. Where the two then
differ in size but agree as stored, the annotation was drawn on the stored rows, and neither is turned.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Integer, Num, UInt8
from PIL import Image as PillowImage

from jaxseg.data import images
from jaxseg.data.source import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".webp")

_ORIENTATION = 0x0112  # EXIF's tag
_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 258  # TIFF's tag
_DEPTH = 24  # where a PNG's header says its bits a channel

Colors = Mapping[tuple[int, int, int], int]


@dataclasses.dataclass(frozen=True)
class Rule:
  """How files are read.

  Attributes:
    value_range: (low, high), the values that become 0 and 255 in images with more than 8 bits; () refuses
      such images.
    colors: RGB → class id of masks drawn in colours; empty where masks hold ids.
  """

  value_range: tuple[float, ...] = ()
  colors: Colors = dataclasses.field(default_factory=dict)


def read_pair(
  image: bytes, mask: bytes, *, image_path: str, mask_path: str, rule: Rule
) -> tuple[bytes, bytes]:
  """Both files as they are stored: RGB of 8 bits, and a mask of ids (raw ones), of equal orientation.

  Raises:
    DataError: a file that is cut off, or cannot be read without guessing; the sentence names it.
  """
  picture, drawing = open_image(image, image_path, "image"), open_image(mask, mask_path, "mask")
  if drawing.format == "JPEG":
    raise DataError(
      f"mask {mask_path} is a JPEG, whose compression changes ids and colours; export masks as PNG"
    )
  sizes = [_displayed(x) for x in (picture, drawing)]
  turn = sizes[0] == sizes[1] or picture.size != drawing.size
  return _stored_image(image, picture, image_path, rule, turn), _stored_mask(
    mask, drawing, mask_path, rule, turn
  )


def read_ids(mask: bytes, path: str, rule: Rule) -> Integer[np.ndarray, "h w"]:
  """The ids in a mask's file, as displayed.

  Raises:
    DataError: as `read_pair`.
  """
  return _ids(open_image(mask, path, "mask"), mask, path, rule, turn=True)


def open_image(data: bytes, path: str, kind: str) -> PillowImage.Image:
  """The file, looked at but not decoded yet.

  Raises:
    DataError: no image, several images in one, or one that is too large.
  """
  try:
    picture = PillowImage.open(io.BytesIO(data))
    frames = getattr(picture, "n_frames", 1)
  except PillowImage.DecompressionBombError:
    raise DataError(
      f"{kind} {path} has more than {2 * PillowImage.MAX_IMAGE_PIXELS // 10**6} megapixels; cut it into tiles"
    ) from None
  # Which error a damaged file gives depends on where it is damaged.
  except Exception as error:
    decoded = _by_opencv(data)
    if decoded is None or decoded.ndim > 3:
      raise DataError(
        f"{kind} {path} is truncated or not a picture ({images.one_line(error)}); replace the file"
      ) from None
    return PillowImage.new("F", decoded.shape[1::-1])  # stands for what Pillow does not know; see _values
  if frames > 1:
    raise DataError(
      f"{kind} {path} holds {frames} pages or frames; save the one that is meant as a file of its own"
    )
  return picture


def _displayed(picture: PillowImage.Image) -> tuple[int, int]:
  """(width, height) with the orientation applied."""
  return picture.size[::-1] if _orientation(picture) >= 5 else picture.size


def _orientation(picture: PillowImage.Image) -> int:
  try:
    value = picture.getexif().get(_ORIENTATION, 1)
  # A broken EXIF block is no reason to refuse an image.
  except Exception:
    return 1
  return value if value in range(1, 9) else 1


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
  """`array` as displayed; EXIF's eight orientations."""
  if orientation >= 5:
    array = array.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    array = array[::-1]
  if orientation in (2, 3, 6, 7):
    array = array[:, ::-1]
  return np.ascontiguousarray(array)


def _is_deep(data: bytes, picture: PillowImage.Image) -> bool:
  """A PNG or TIFF of 16 bits, of which Pillow gives the high bytes where it has colours."""
  if picture.format == "TIFF" and picture.mode in ("RGB", "RGBA"):
    bits = picture.tag_v2.get(_BITS_PER_SAMPLE, 8)
    return max(bits if isinstance(bits, tuple) else (bits,)) > 8
  return data[:8] == _PNG and data[_DEPTH] == 16


def _by_opencv(data: bytes) -> Num[np.ndarray, "..."] | None:
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except cv2.error:
    return None


def _values(picture: PillowImage.Image, data: bytes, path: str, kind: str) -> Num[np.ndarray, "..."]:
  """Every value of a file, h w or h w c in the order RGB, in its own type, rows as stored."""
  if _is_deep(data, picture) or picture.format is None:
    values = _by_opencv(data)
    if values is None:
      raise DataError(f"{kind} {path} is truncated or not a picture; replace the file")
    return values if values.ndim == 2 else values[..., [2, 1, 0, *range(3, values.shape[2])]]
  images.load(data, path, kind)  # to the last byte: what is cut off is not filled with grey
  with PillowImage.open(io.BytesIO(data)) as again:
    return np.asarray(again)


def _stored_image(data: bytes, picture: PillowImage.Image, path: str, rule: Rule, turn: bool) -> bytes:
  orientation = _orientation(picture) if turn and picture.format != "TIFF" else 1  # Pillow turns TIFF itself
  plain = picture.format in ("JPEG", "PNG") and picture.mode in ("L", "RGB") and not _is_deep(data, picture)
  if plain and orientation == 1:
    images.load(data, path, "image", reduced=True)
    return data
  deep = _is_deep(data, picture) or picture.format is None or picture.mode[:1] in ("I", "F")
  if not deep:
    rgb = np.asarray(images.load(data, path, "image").convert("RGB"))
  else:
    rgb = _scaled(_values(picture, data, path, "image"), path, rule.value_range)
  return images.encode_image(_turned(rgb, orientation))


def _scaled(
  values: Num[np.ndarray, "..."], path: str, value_range: Sequence[float]
) -> UInt8[np.ndarray, "h w 3"]:
  """More than 8 bits → 8, by an explicit range only."""
  channels = 1 if values.ndim == 2 else values.shape[2]
  if channels not in (1, 3, 4):
    raise DataError(f"image {path} has {channels} channels; expected 1, 3, or 4 with transparency")
  if values.dtype != np.uint8:
    if len(value_range) != 2:
      raise DataError(
        f"image {path} holds {values.dtype} values from {values.min():g} to {values.max():g}; say which"
        " become 0 and 255 with data.value_range, such as (0,65535), or (0,4095) for 12 bits"
      )
    low, high = value_range
    if not np.isfinite(values).all():
      raise DataError(f"image {path} holds values that are not finite; replace them")
    values = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    values = np.floor(values + 0.5).astype(np.uint8)
  if channels == 1:
    return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
  return np.ascontiguousarray(values[..., :3])


def _stored_mask(data: bytes, drawing: PillowImage.Image, path: str, rule: Rule, turn: bool) -> bytes:
  plain = drawing.format == "PNG" and drawing.mode in ("L", "I;16", "P", "1") and not rule.colors
  if plain and _orientation(drawing) == 1:
    images.load(data, path, "mask")
    return data
  ids = _ids(drawing, data, path, rule, turn)
  if ids.size and (ids.min() < 0 or ids.max() >= 2**16):
    raise DataError(f"mask {path} has ids from {ids.min()} to {ids.max()}; expected 0 to 65535")
  return images.encode_mask(ids)


def _ids(
  drawing: PillowImage.Image, data: bytes, path: str, rule: Rule, turn: bool
) -> Integer[np.ndarray, "h w"]:
  orientation = _orientation(drawing) if turn and drawing.format != "TIFF" else 1
  if drawing.mode == "P" and rule.colors:
    values = _palette_colors(images.load(data, path, "mask"), rule.colors)
  else:
    values = _values(drawing, data, path, "mask")
  if values.ndim == 3 and values.shape[2] == 2:
    values = values[..., 0]  # grey with transparency
  if values.ndim == 3:
    values = _flat(values[..., :3], path, rule.colors)
  if values.dtype.kind == "f":
    if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
      raise DataError(f"mask {path} holds fractions; expected one class id a pixel, as whole numbers")
    values = values.astype(np.int64)
  return _turned(values.astype(np.uint8) if values.dtype == np.bool_ else values, orientation)


def _palette_colors(drawing: PillowImage.Image, colors: Colors) -> np.ndarray:
  """The colours of a palette mask where all of them are classes, else its indices."""
  rgb = np.asarray(drawing.convert("RGB"))
  known = {tuple(color) for color in np.unique(rgb.reshape(-1, 3), axis=0).tolist()} <= set(colors)
  return rgb if known else np.asarray(drawing)


def _flat(rgb: Num[np.ndarray, "h w 3"], path: str, colors: Colors) -> Integer[np.ndarray, "h w"]:
  """Colours as ids: by the list of classes, or grey that was saved as RGB."""
  is_grey = (rgb == rgb[..., :1]).all()
  if colors:
    if rgb.dtype != np.uint8:
      raise DataError(f"mask {path} has colours of {rgb.dtype}; expected 8 bits a channel")
    return images.color_ids(rgb, colors, path=path)
  if is_grey:
    return rgb[..., 0]
  raise DataError(
    f"mask {path} is drawn in colours; say which are which class in classes.txt beside images/, one line a"
    " class as `name r g b`, or put CVAT's labelmap.txt there"
  )
