"""Encoded pictures and masks → arrays, and the checks a pair has to pass before it is stored."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
import scipy.io
from jaxtyping import Int, Integer, UInt8
from PIL import Image as PillowImage

from jaxseg.classes import class_bits
from jaxseg.data import files, packed
from jaxseg.data.source import DataError
from jaxseg.errors import UserError
from jaxseg.types import IGNORE_LABEL

# Pillow's names for what holds one id a pixel: bilevel, 8-bit grey, palette index, 16-bit grey.
MASK_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_UNKNOWN = -1
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY = b"\x08\x00"  # a PNG's bit depth 8 and colour type 0


def label_table(
  mapping: dict[int, int], *, num_classes: int, where: str, multi_label: bool = False
) -> Int[np.ndarray, "65536"]:
  """Raw id → train id as an int16 look-up table (int32 with `multi_label`); -1 where the mapping is silent.

  Args:
    mapping: raw → train; train ids 0..num_classes-1, or 255 for "no label".
    num_classes: how many classes are trained.
    where: the dataset, for the error message.
    multi_label: train ids are labels of several classes (`jaxseg.classes`).

  Raises:
    DataError: a raw id that no mask can hold, or a train id outside the classes.
  """
  table = np.full(2**16, _UNKNOWN, np.int32 if multi_label else np.int16)
  every = int(class_bits(num_classes).sum()) if multi_label else num_classes - 1
  for raw, train in mapping.items():
    if not 0 <= raw < 2**16:
      raise DataError(f"{where}: label_map has raw id {raw}; a mask holds ids 0 to 65535")
    if not ((0 <= train <= every and not (multi_label and train & ~every)) or train == IGNORE_LABEL):
      raise DataError(
        f"{where}: label_map sends raw id {raw} to {train}; expected 0 to {every},"
        f" or {IGNORE_LABEL} for pixels without a label"
      )
    table[raw] = train
  return table


def decode_image(data: bytes) -> UInt8[np.ndarray, "h w c"]:
  """A JPEG or PNG as RGB, rows as stored (an EXIF rotation is ignored, as masks have none); or all channels.

  Images of other channels than three are stored packed (`packed.py`).
  """
  if packed.is_packed(data):
    return packed.unpack(data)
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  if image is None:
    raise DataError("a stored picture cannot be decoded; delete the prepared dataset and prepare it again")
  return image


def decode_mask(data: bytes) -> Integer[np.ndarray, "h w"]:
  """The raw ids of a mask: grey values or palette indices (never palette colours), or packed ids."""
  if packed.is_packed(data):
    return packed.unpack(data)
  if data[:8] == _PNG and data[24:26] == _GREY:  # OpenCV is faster, but makes palettes into colours
    ids = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if ids is not None:
      return ids
  with PillowImage.open(io.BytesIO(data)) as mask:
    ids = np.asarray(mask)
  return ids.astype(np.uint8) if ids.dtype == np.bool_ else ids


def train_ids(
  ids: Integer[np.ndarray, "h w"], table: Integer[np.ndarray, "65536"]
) -> Integer[np.ndarray, "h w"]:
  """Raw ids → train ids by a table without gaps."""
  # A quarter of the time of NumPy's look-up, for the masks that nearly every data set has.
  return cv2.LUT(ids, table[:256]) if ids.dtype == np.uint8 else table[ids]


def encoded_size(data: bytes) -> tuple[int, int]:
  """(height, width), read from the header."""
  if packed.is_packed(data):
    return packed.shape(data)[:2]
  with PillowImage.open(io.BytesIO(data)) as picture:
    return picture.height, picture.width


def encode_mask(ids: Integer[np.ndarray, "h w"]) -> bytes:
  """Class ids 0 to 65535 as a grey PNG, 8-bit where that suffices."""
  kind = np.uint8 if ids.size == 0 or int(ids.max()) < 2**8 else np.uint16
  return _encode(ids.astype(kind))


def encode_image(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """An RGB picture as a PNG."""
  return _encode(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def _encode(array: np.ndarray) -> bytes:
  return cv2.imencode(".png", array)[1].tobytes()


def index_mask(data: bytes, colors: Mapping[tuple[int, int, int], int], *, path: str) -> bytes:
  """A mask that may be drawn in colours, as one that holds ids; any other mask comes back as it is.

  Args:
    data: the mask's file.
    colors: RGB → raw id.
    path: for the error message.

  Raises:
    DataError: a truncated file, or a colour that is no class.
  """
  picture = load(data, path, "mask")
  if picture.mode not in ("RGB", "RGBA"):
    return data
  return encode_mask(color_ids(np.asarray(picture.convert("RGB")), colors, path=path))


def color_ids(
  rgb: UInt8[np.ndarray, "h w 3"], colors: Mapping[tuple[int, int, int], int], *, path: str
) -> Integer[np.ndarray, "h w"]:
  """A drawing's colours as ids.

  Raises:
    DataError: a colour that is no class; the message says where.
  """
  wide = rgb.astype(np.int32)
  packed = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
  # Sorted, so that a pixel's colour is found by bisection and not by a pass for each class.
  known = np.array(sorted((r << 16) | (g << 8) | b for r, g, b in colors), np.int32)
  ids = np.array([colors[(c >> 16, (c >> 8) & 255, c & 255)] for c in known.tolist()])
  place = np.minimum(np.searchsorted(known, packed), len(known) - 1)
  wrong = known[place] != packed
  if wrong.any():
    y, x = np.argwhere(wrong)[0]
    raise DataError(
      f"mask {path} has the colour {tuple(rgb[y, x].tolist())} at row {y}, column {x}, which is no class"
      f" ({int(wrong.sum())} pixels have such colours); correct the mask"
    )
  return ids[place]


def one_line(error: BaseException) -> str:
  """An error's words, short enough for a sentence."""
  words = " ".join(str(error).split()) or type(error).__name__
  return words if len(words) <= 120 else words[:117] + "..."


def mat_mask(path: str, fields: Sequence[str]) -> bytes:
  """The map of ids in a MATLAB file, as a PNG.

  Args:
    path: the file.
    fields: the variable, and the names inside it when it is a structure.

  Raises:
    DataError: truncated, no MATLAB file, or without that variable.
  """
  try:
    value = scipy.io.loadmat(io.BytesIO(files.read_bytes(path)), variable_names=fields[:1])[fields[0]]
    for field in fields[1:]:
      value = value[field][0, 0]
    ids = np.asarray(value, np.int64)
    if ids.ndim != 2 or ids.size == 0 or ids.min() < 0 or ids.max() >= 2**16:
      raise UserError(f"{'.'.join(fields)} is no map of class ids")
  # Which error a damaged file gives depends on where it is damaged.
  except Exception as error:
    raise DataError(
      f"mask {path} is truncated or no MATLAB file with {'.'.join(fields)} ({error}); replace the file"
    ) from error
  return encode_mask(ids)


def load(data: bytes, path: str, kind: str, *, reduced: bool = False) -> PillowImage.Image:
  """The picture, read to its last byte.

  Args:
    data: the file.
    path: for the error message.
    kind: "image" or "mask", likewise.
    reduced: decode a JPEG at an eighth of its size; every byte is still read.

  Raises:
    DataError: a file that is cut off or no picture.
  """
  # cv2 and libjpeg fill a cut-off file with grey and only print to stderr; Pillow raises.
  with opening(path, kind):
    picture = PillowImage.open(io.BytesIO(data))
    if reduced:
      picture.draft(None, (max(picture.width // 8, 1), max(picture.height // 8, 1)))
    picture.load()
  return picture


@contextlib.contextmanager
def opening(path: str, kind: str) -> Iterator[None]:
  """What Pillow raises over a file, an "image" or a "mask", as a sentence: its damage decides which error."""
  try:
    yield
  except DataError:
    raise
  except PillowImage.DecompressionBombError:
    raise DataError(
      f"{kind} {path} has more than {2 * PillowImage.MAX_IMAGE_PIXELS // 10**6} megapixels; cut it into tiles"
    ) from None
  except Exception as error:
    raise DataError(
      f"{kind} {path} is truncated or not a picture ({one_line(error)}); replace the file"
    ) from error


def check_image(data: bytes, *, path: str) -> tuple[int, int]:
  """Reads the whole file; its (height, width).

  Raises:
    DataError: truncated, or not a picture.
  """
  if not packed.is_packed(data):
    load(data, path, "image", reduced=True)
  return encoded_size(data)


def check_pair(
  image: bytes, mask: bytes, *, image_path: str, mask_path: str, table: Int[np.ndarray, "65536"]
) -> None:
  """Reads both files completely and compares them.

  Raises:
    DataError: truncated file, mask with several channels, sizes that differ, or an id
      that `table` (see `label_table`) does not know; the message names the file.
  """
  size = check_image(image, path=image_path)
  pillow_mask = load(mask, mask_path, "mask")
  if pillow_mask.mode not in MASK_MODES:
    raise DataError(
      f"mask {mask_path} is {pillow_mask.mode}; expected one class id a pixel"
      " (8-bit or 16-bit grey, or a palette PNG)"
    )
  check_sizes(size, pillow_mask.size[::-1], image_path=image_path, mask_path=mask_path)
  ids = np.unique(decode_mask(mask))
  if ids[0] < 0 or ids[-1] >= len(table):
    raise DataError(f"mask {mask_path} has ids from {ids[0]} to {ids[-1]}; expected 0 to 65535")
  unknown = ids[table[ids] == _UNKNOWN]
  if len(unknown):
    raise DataError(
      f"mask {mask_path} has id {', '.join(map(str, unknown[:8].tolist()))}, which is no class;"
      f" known ids: {_ranges(np.flatnonzero(table != _UNKNOWN))}."
      " Correct the mask or map the id in the label map"
    )


def check_sizes(image: tuple[int, ...], mask: tuple[int, ...], *, image_path: str, mask_path: str) -> None:
  """Raises DataError where (height, width) of an image and of its mask are not equal."""
  if image != mask:
    (ih, iw), (mh, mw) = image, mask
    raise DataError(
      f"image {image_path} is {ih}x{iw} (height x width), but its mask {mask_path} is {mh}x{mw};"
      " they must be equal"
    )


def _ranges(ids: Int[np.ndarray, "n"]) -> str:
  """0, 1, 2, 7 → "0-2, 7"."""
  runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
  return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs if len(r))
