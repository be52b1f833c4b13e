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

from jaxseg.classes import as_label
from jaxseg.data import images, packed
from jaxseg.data.source import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".npy")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".webp", ".npy")

_ORIENTATION = 0x0112  # EXIF's tag
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277  # TIFF's tags
_DEPTH = 24  # where a PNG's header says its bits a channel

Colors = Mapping[tuple[int, int, int], int]


@dataclasses.dataclass(frozen=True)
class Rule:
  """How files are read.

  Attributes:
    value_range: (low, high), the values that become 0 and 255 in images with more than 8 bits; () refuses
      such images.
    colors: RGB → class id of masks drawn in colours; empty where masks hold ids.
    channels: of images; others than 3 are stored as they are, in 8 bits.
    classes: that a pixel may have at once, so that masks may have a channel for each; 0 where it has one.
  """

  value_range: tuple[float, ...] = ()
  colors: Colors = dataclasses.field(default_factory=dict)
  channels: int = 3
  classes: int = 0


def read_pair(
  image: bytes, mask: bytes, *, image_path: str, mask_path: str, rule: Rule
) -> tuple[bytes, bytes]:
  """Both files as they are stored: RGB of 8 bits, and a mask of ids (raw ones), of equal orientation.

  Raises:
    DataError: a file that is cut off, or cannot be read without guessing; the sentence names it.
  """
  picture, drawing = open_image(image, image_path, "image"), open_image(mask, mask_path, "mask")
  _refuse_jpeg(drawing, mask_path)
  # Width and height as displayed.
  image_size, mask_size = (x.size[::-1] if _orientation(x) >= 5 else x.size for x in (picture, drawing))
  turn = image_size == mask_size or picture.size != drawing.size
  return _stored_image(image, picture, image_path, rule, turn), _stored_mask(
    mask, drawing, mask_path, rule, turn
  )


def joined(masks: Sequence[tuple[int, str, bytes]]) -> bytes:
  """One mask of several classes a pixel, a PNG, from a mask for each class: all but 0 is the class.

  Args:
    masks: (bit of the class, path, file).

  Raises:
    DataError: as `read_pair`, or masks of different sizes.
  """
  both: np.ndarray | None = None
  for bit, path, data in masks:
    drawing = open_image(data, path, "mask")
    _refuse_jpeg(drawing, path)
    ids = np.where(_ids(drawing, data, path, Rule(), turn=True) != 0, bit, 0)
    if both is not None and ids.shape != both.shape:
      raise DataError(
        f"mask {path} is {ids.shape[0]}x{ids.shape[1]} (height x width), but {masks[0][1]} is"
        f" {both.shape[0]}x{both.shape[1]}; masks of one image must be equal in size"
      )
    both = ids if both is None else both | ids
  return images.encode_mask(both)


def _refuse_jpeg(drawing: PillowImage.Image, path: str) -> None:
  if drawing.format == "JPEG":
    raise DataError(f"mask {path} is a JPEG, whose compression changes ids and colours; export masks as PNG")


def read_ids(mask: bytes, path: str, rule: Rule) -> Integer[np.ndarray, "h w"]:
  """The ids in a mask's file, as displayed.

  Raises:
    DataError: as `read_pair`.
  """
  return _ids(open_image(mask, path, "mask"), mask, path, rule, turn=True)


def read_image(image: bytes, path: str, rule: Rule, *, turn: bool = True) -> UInt8[np.ndarray, "h w c"]:
  """An image's file as 8 bits and `rule.channels`, as displayed, or with `turn=False` as stored.

  Raises:
    DataError: another number of channels, more bits without a range, or a file that is no image.
  """
  return _pixels(image, open_image(image, path, "image"), path, rule, turn)


def needs_rule(image: bytes) -> bool:
  """Whether a file has more than 8 bits a channel, or is an array, so that Pillow alone does not read it."""
  try:
    picture = PillowImage.open(io.BytesIO(image))
  except Exception:  # as `open_image`
    return image[:6] == np.lib.format.MAGIC_PREFIX or image[:4] in _TIFF
  return _is_deep(image, picture) or picture.mode[:1] in ("I", "F")


def open_image(data: bytes, path: str, kind: str) -> PillowImage.Image:
  """The file, looked at but not decoded yet.

  Raises:
    DataError: no image, several images in one, or one that is too large.
  """
  with images.opening(path, kind):
    try:
      picture = PillowImage.open(io.BytesIO(data))
      frames = getattr(picture, "n_frames", 1)
    except PillowImage.DecompressionBombError:
      raise
    except Exception:
      decoded = _beyond_pillow(data, path)
      if decoded is None or decoded.ndim not in (2, 3):
        raise
      return PillowImage.new("F", decoded.shape[1::-1])  # stands for what Pillow does not know; see _values
  if frames > 1:
    raise DataError(
      f"{kind} {path} holds {frames} pages or frames; save the one that is meant as a file of its own"
    )
  return picture


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
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  except cv2.error:
    return None
  return values if values is None or values.ndim == 2 else values[..., [2, 1, 0, *range(3, values.shape[2])]]


def _beyond_pillow(data: bytes, path: str) -> Num[np.ndarray, "..."] | None:
  """Arrays of NumPy, TIFF of many bands, and what OpenCV knows; None for anything else."""
  if data[:6] == np.lib.format.MAGIC_PREFIX:
    try:
      values = np.load(io.BytesIO(data), mmap_mode=None, allow_pickle=False)
    except (ValueError, EOFError, MemoryError):
      return None
    values = values.astype(np.uint8) if values.dtype == np.bool_ else values
    return values if values.dtype.kind in "uif" else None
  if data[:4] in _TIFF and (values := _by_tifffile(data, path)) is not None:
    return values
  return _by_opencv(data)


def _by_tifffile(data: bytes, path: str) -> Num[np.ndarray, "..."] | None:
  """The bands of a TIFF, last; None where the library is not there."""
  try:
    import tifffile
  except ModuleNotFoundError:
    return None
  try:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
      page = file.pages[0]
      values = page.asarray()
      return np.moveaxis(values, 0, -1) if page.axes == "SYX" else values
  # Each compression has errors of its own.
  except Exception as error:
    raise DataError(
      f"image {path} is a TIFF that cannot be read ({images.one_line(error)}); save it without compression,"
      " or with deflate"
    ) from error


def _values(picture: PillowImage.Image, data: bytes, path: str, kind: str) -> Num[np.ndarray, "..."]:
  """Every value of a file, h w or h w c in the order RGB, in its own type, rows as stored."""
  if _is_deep(data, picture) or picture.format is None:
    values = _beyond_pillow(data, path) if picture.format is None else _by_opencv(data)
    if values is None:
      raise DataError(f"{kind} {path} is truncated or not a picture; replace the file")
    return values
  images.load(data, path, kind)  # to the last byte: what is cut off is not filled with grey
  with PillowImage.open(io.BytesIO(data)) as again:
    return np.asarray(again)


def _stored_image(data: bytes, picture: PillowImage.Image, path: str, rule: Rule, turn: bool) -> bytes:
  plain = picture.format in ("JPEG", "PNG") and picture.mode in ("L", "RGB") and not _is_deep(data, picture)
  if plain and rule.channels == 3 and not (turn and _orientation(picture) != 1):
    images.load(data, path, "image", reduced=True)
    return data
  pixels = _pixels(data, picture, path, rule, turn)
  return packed.pack(pixels) if rule.channels != 3 else images.encode_image(pixels)


def _pixels(
  data: bytes, picture: PillowImage.Image, path: str, rule: Rule, turn: bool
) -> UInt8[np.ndarray, "h w c"]:
  orientation = _orientation(picture) if turn and picture.format != "TIFF" else 1  # Pillow turns TIFF itself
  if rule.channels != 3:
    return _turned(_bands(data, picture, path, rule), orientation)
  if _is_deep(data, picture) or picture.format is None or picture.mode[:1] in ("I", "F"):
    rgb = _scaled(_values(picture, data, path, "image"), path, rule.value_range)
  else:
    rgb = np.asarray(images.load(data, path, "image").convert("RGB"))
  return _turned(rgb, orientation)


def _bands(data: bytes, picture: PillowImage.Image, path: str, rule: Rule) -> UInt8[np.ndarray, "h w c"]:
  """All channels of an image, which have to be `rule.channels`; grey that was saved as RGB is grey."""
  is_tiff = picture.format == "TIFF" or data[:4] in _TIFF
  values = _beyond_pillow(data, path) if is_tiff else None  # Pillow shows one band of some
  values = _values(picture, data, path, "image") if values is None else values
  values = values if values.ndim == 3 else values[..., None]
  if rule.channels == 1 and values.shape[2] > 1:
    shown = values[..., :1] if values.shape[2] == 2 else values[..., :3]  # without transparency
    values = shown[..., :1] if (shown == shown[..., :1]).all() else values
  if values.shape[2] != rule.channels:
    raise DataError(
      f"image {path} has {values.shape[2]} channels, but data.channels is {rule.channels}; set it to"
      f" {values.shape[2]}, or convert the image"
    )
  return to_eight_bits(values, f"image {path}", rule.value_range)


def _scaled(
  values: Num[np.ndarray, "..."], path: str, value_range: Sequence[float]
) -> UInt8[np.ndarray, "h w 3"]:
  """More than 8 bits → 8, by an explicit range only; grey three times."""
  channels = 1 if values.ndim == 2 else values.shape[2]
  if channels not in (1, 3, 4):
    raise DataError(
      f"image {path} has {channels} channels; expected 1, 3, or 4 with transparency, or set data.channels"
    )
  values = to_eight_bits(values, f"image {path}", value_range)
  if channels == 1:
    return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
  return np.ascontiguousarray(values[..., :3])


def to_eight_bits(
  values: Num[np.ndarray, "*s"], name: str, value_range: Sequence[float]
) -> UInt8[np.ndarray, "*s"]:
  """Values of any type as 0 to 255: those of 8 bits as they are, others by `value_range`.

  Raises:
    DataError: no range for values that need one, or some that are not finite.
  """
  if values.dtype != np.uint8:
    if len(value_range) != 2:
      raise DataError(
        f"{name} holds {values.dtype} values from {values.min():g} to {values.max():g}; say which become 0"
        " and 255 with data.value_range (in predict --value_range, or preprocess=dict(value_range=...)), such"
        " as (0,65535), or (0,4095) for 12 bits"
      )
    low, high = value_range
    if not np.isfinite(values).all():
      raise DataError(f"{name} holds values that are not finite; replace them")
    values = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    values = np.floor(values + 0.5).astype(np.uint8)
  return values


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
    rgb = np.asarray(images.load(data, path, "mask").convert("RGB"))
    known = {tuple(color) for color in np.unique(rgb.reshape(-1, 3), axis=0).tolist()} <= set(rule.colors)
    values = rgb if known else np.asarray(drawing)  # where not all of its colours are classes, the indices
  else:
    values = _values(drawing, data, path, "mask")
    if drawing.format == "TIFF" and drawing.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > len(drawing.getbands()):
      bands = _beyond_pillow(data, path)  # Pillow shows one of them
      values = values if bands is None else bands
  if values.ndim == 3 and rule.classes > 1:
    is_pillows = drawing.format and values.shape[2] == len(drawing.getbands())
    values = _joined_channels(values, drawing.mode if is_pillows else "", path, rule)
  if values.ndim == 3 and values.shape[2] > 4:
    raise DataError(f"mask {path} has {values.shape[2]} channels; expected one class id a pixel")
  if values.ndim == 3 and values.shape[2] == 2:
    values = values[..., 0]  # grey with transparency
  if values.ndim == 3:
    values = _flat(values[..., :3], path, rule.colors)
  if values.dtype.kind == "f":
    if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
      raise DataError(f"mask {path} holds fractions; expected one class id a pixel, as whole numbers")
    values = values.astype(np.int64)
  return _turned(values.astype(np.uint8) if values.dtype == np.bool_ else values, orientation)


def _joined_channels(
  values: Num[np.ndarray, "h w c"], mode: str, path: str, rule: Rule
) -> Num[np.ndarray, "h w *c"]:
  """The bits of the classes where a mask has a channel for each; else the mask as it is: colours, or grey.

  `mode` is Pillow's for what it reads: of two to four channels, which may be one number a pixel that was
  saved with colours or transparency.
  """
  count = values.shape[2]
  if mode == "RGBA" and rule.classes == 3:
    values, count = values[..., :3], 3
  is_grey, is_opaque = bool((values == values[..., :1]).all()), bool((values[..., -1] == 255).all())
  if (mode and (rule.colors or count != rule.classes)) or count == 1:
    return values
  if count != rule.classes:
    raise DataError(
      f"mask {path} has {count} channels, but data.classes {rule.classes} names; expected a channel for each,"
      " in their order"
    )
  found = np.unique(values)
  if not (np.isin(found, (0, 1)).all() or np.isin(found, (0, 255)).all()):
    if mode and (is_grey if mode == "RGB" else is_opaque):
      return values
    raise DataError(
      f"mask {path} holds {', '.join(f'{value:g}' for value in found[:6].astype(np.float64))}"
      f"{', ...' if len(found) > 6 else ''} in its {count} channels; expected 0 and 1, or 0 and 255, which"
      " say whether a pixel has the class of that channel"
    )
  if mode and values[..., 0].any() and (is_grey if mode == "RGB" else is_opaque):
    raise DataError(
      f"mask {path} ({mode}) may be one number a pixel or a channel for each of {count} classes, as its"
      f" {'channels are equal' if mode == 'RGB' else 'last channel is full'}; save it in grey, or as NAME.npy"
      " of height, width, classes"
    )
  return as_label(values != 0)


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
