"""Draws a folder of oddities: formats, depths, modes, orientations, names, damage; what each should be."""

import dataclasses
import io
import os
import pathlib
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageOps

SIZE = (24, 40)
RANGE = (0, 4095)  # config.data.value_range
_ORIENTATION = 0x0112


@dataclasses.dataclass
class Oddity:
  """A pair of files, and the pixels it has to become, or words of the sentence that names it."""

  write: Callable[[pathlib.Path, pathlib.Path], None]  # (images/NAME, masks/NAME), both without suffix
  image: np.ndarray | None = None
  label: np.ndarray | None = None
  sentence: str = ""


def _picture() -> np.ndarray:
  y, x = np.mgrid[: SIZE[0], : SIZE[1]]
  return np.stack([x * 6, y * 10, (x + y) * 3], axis=-1).astype(np.uint8)


def _label() -> np.ndarray:
  y, x = np.mgrid[: SIZE[0], : SIZE[1]]
  label = (x // 14).astype(np.uint8)
  label[:3, :3] = 255
  label[y > 20] = 0
  return label


IMAGE, LABEL = _picture(), _label()
GREY = np.repeat(IMAGE[..., :1], 3, axis=2)


def _save(path: pathlib.Path, array, **options) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  (array if isinstance(array, Image.Image) else Image.fromarray(np.ascontiguousarray(array))).save(
    path, **options
  )


def _pair(image=IMAGE, mask=LABEL, *, image_end=".png", mask_end=".png", image_options=(), mask_options=()):
  def write(image_path: pathlib.Path, mask_path: pathlib.Path) -> None:
    _save(image_path.parent / (image_path.name + image_end), image, **dict(image_options))
    _save(mask_path.parent / (mask_path.name + mask_end), mask, **dict(mask_options))

  return write


def _cv(image=None, mask=None):
  """Arrays that Pillow does not write, through OpenCV."""

  def write(image_path: pathlib.Path, mask_path: pathlib.Path) -> None:
    for path, array, default in ((image_path, image, IMAGE), (mask_path, mask, LABEL)):
      if array is None:
        _save(path.with_name(path.name + ".png"), default)
      else:
        array, end = array
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + end).write_bytes(cv2.imencode(end, array)[1].tobytes())

  return write


def _bytes(change: Callable[[bytes], bytes], which: str):
  def write(image_path: pathlib.Path, mask_path: pathlib.Path) -> None:
    _pair()(image_path, mask_path)
    path = image_path if which == "image" else mask_path
    path = path.with_name(path.name + ".png")
    path.write_bytes(change(path.read_bytes()))

  return write


def _exif(orientation: int):
  exif = Image.Exif()
  exif[_ORIENTATION] = orientation
  return {"exif": exif}


def _stored(array: np.ndarray, orientation: int) -> np.ndarray:
  """What a file with this orientation stores so that it shows `array`; by Pillow's own rule, tried out."""
  for turn in range(4):
    for flip in (False, True):
      stored = np.rot90(array[:, ::-1] if flip else array, turn)
      buffer = io.BytesIO()
      Image.fromarray(np.ascontiguousarray(stored)).save(buffer, "PNG", **_exif(orientation))
      shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
      if shown.shape == array.shape and (shown == array).all():
        return np.ascontiguousarray(stored)
  raise AssertionError(orientation)


def _palette(label: np.ndarray) -> Image.Image:
  indexed = Image.new("P", label.shape[::-1])
  indexed.putdata(label.ravel().tolist())
  indexed.putpalette([v for i in range(256) for v in (255 - i, i, 7)])
  return indexed


def _bomb(data: bytes) -> bytes:
  """A PNG whose header says 30,000 x 30,000."""
  head = struct.pack(">II", 30000, 30000) + data[24:29]
  return data[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]


def _animated(image_path: pathlib.Path, mask_path: pathlib.Path) -> None:
  image_path.parent.mkdir(parents=True, exist_ok=True)
  frames = [Image.fromarray(IMAGE), Image.fromarray(255 - IMAGE)]
  frames[0].save(image_path.with_name(image_path.name + ".tif"), save_all=True, append_images=frames[1:])
  _save(mask_path.with_name(mask_path.name + ".png"), LABEL)


def _without_mask(image_path: pathlib.Path, mask_path: pathlib.Path) -> None:
  _save(image_path.with_name(image_path.name + ".png"), IMAGE)


DEEP = IMAGE.astype(np.uint16) * 16  # 12 bits in 16
_EXPECTED_DEEP = np.floor(np.clip(DEEP * (255 / 4095), 0, 255) + 0.5).astype(np.uint8)
_RGBA = np.dstack([IMAGE, np.full(SIZE, 255, np.uint8)])
_GREY_RGB = np.repeat(LABEL[..., None], 3, axis=2)
_ALPHA = np.full((*SIZE, 1), 255, np.uint8)

ODDITIES: dict[str, Oddity] = {
  "plain": Oddity(_pair(), IMAGE, LABEL),
  "bmp": Oddity(_pair(image_end=".bmp", mask_end=".bmp"), IMAGE, LABEL),
  "tif": Oddity(_pair(image_end=".tif", mask_end=".tif"), IMAGE, LABEL),
  "tiff": Oddity(_pair(image_end=".tiff", mask_end=".tiff"), IMAGE, LABEL),
  "webp": Oddity(_pair(image_end=".webp", image_options={"lossless": True}), IMAGE, LABEL),
  "letters": Oddity(_pair(image_end=".PNG", mask_end=".Png"), IMAGE, LABEL),
  "CamelCase": Oddity(lambda i, m: _pair()(i, m.with_name(m.name.lower())), IMAGE, LABEL),
  "name with spaces": Oddity(_pair(), IMAGE, LABEL),
  "dots.in.name": Oddity(_pair(), IMAGE, LABEL),
  "deep/er/nested": Oddity(_pair(), IMAGE, LABEL),
  "whole_name": Oddity(_pair(image_end=".bmp", mask_end=".bmp.png"), IMAGE, LABEL),
  "rgba": Oddity(_pair(_RGBA), IMAGE, LABEL),
  "grey": Oddity(_pair(IMAGE[..., 0]), GREY, LABEL),
  "grey_alpha": Oddity(_pair(Image.fromarray(IMAGE[..., 0]).convert("LA")), GREY, LABEL),
  "indexed_image": Oddity(_pair(Image.fromarray(GREY).quantize(256)), None, LABEL),
  "grey16": Oddity(_pair(DEEP[..., 0]), np.repeat(_EXPECTED_DEEP[..., :1], 3, axis=2), LABEL),
  "rgb16": Oddity(_cv(image=(DEEP[..., ::-1], ".png")), _EXPECTED_DEEP, LABEL),
  "rgb16_tif": Oddity(_cv(image=(DEEP[..., ::-1], ".tiff")), _EXPECTED_DEEP, LABEL),
  "float_tif": Oddity(
    _pair(DEEP[..., 0].astype(np.float32), image_end=".tif"),
    np.repeat(_EXPECTED_DEEP[..., :1], 3, axis=2),
    LABEL,
  ),
  "mask16": Oddity(_pair(mask=LABEL.astype(np.uint16)), IMAGE, LABEL),
  "mask_palette": Oddity(_pair(mask=_palette(LABEL)), IMAGE, LABEL),
  "mask_grey_in_rgb": Oddity(_pair(mask=_GREY_RGB), IMAGE, LABEL),
  "mask_grey_in_rgba": Oddity(_pair(mask=np.dstack([_GREY_RGB, _ALPHA])), IMAGE, LABEL),
  "mask_grey_alpha": Oddity(_pair(mask=np.dstack([LABEL, _ALPHA[..., 0]])), IMAGE, LABEL),
  "mask_one_bit": Oddity(_pair(mask=LABEL == 1), IMAGE, (LABEL == 1).astype(np.uint8)),
  "mask_float_tif": Oddity(_pair(mask=LABEL.astype(np.float32), mask_end=".tif"), IMAGE, LABEL),
  "mask_int32_tif": Oddity(_pair(mask=LABEL.astype(np.int32), mask_end=".tif"), IMAGE, LABEL),
  **{
    f"turned{o}": Oddity(_pair(_stored(IMAGE, o), image_options=_exif(o)), IMAGE, LABEL) for o in range(2, 9)
  },
  "both_turned": Oddity(
    _pair(_stored(IMAGE, 6), _stored(LABEL, 6), image_options=_exif(6), mask_options=_exif(6)), IMAGE, LABEL
  ),
  "mask_turned": Oddity(_pair(mask=_stored(LABEL, 3), mask_options=_exif(3)), IMAGE, LABEL),
  "drawn_on_stored_rows": Oddity(_pair(image_options=_exif(6)), IMAGE, LABEL),
  # Named in one sentence.
  "cut_image": Oddity(
    _bytes(lambda data: data[: len(data) // 2], "image"), sentence="truncated or not a picture"
  ),
  "cut_mask": Oddity(_bytes(lambda data: data[:60], "mask"), sentence="truncated or not a picture"),
  "empty_image": Oddity(_bytes(lambda data: b"", "image"), sentence="truncated or not a picture"),
  "text": Oddity(_bytes(lambda data: b"this is a text" * 9, "mask"), sentence="truncated or not a picture"),
  "bomb": Oddity(_bytes(_bomb, "image"), sentence="megapixels; cut it into tiles"),
  "animated": Oddity(_animated, sentence="holds 2 pages or frames"),
  "mask_jpeg": Oddity(_pair(mask_end=".jpg"), sentence="is a JPEG, whose compression changes ids"),
  "mask_colours": Oddity(_pair(mask=IMAGE), sentence="is drawn in colours; say which"),
  "mask_fractions": Oddity(
    _pair(mask=LABEL.astype(np.float32) + 0.5, mask_end=".tif"), sentence="holds fractions"
  ),
  "mask_unknown_id": Oddity(
    _pair(mask=LABEL + np.uint8(9)), sentence="which is no class; known ids: 0-2, 255"
  ),
  "mask_other_size": Oddity(_pair(mask=LABEL[:20]), sentence="is 20x40; they must be equal"),
  "without_mask": Oddity(_without_mask, sentence="is missing"),
}

# What is left aside, by a part of its name.
SKIPPED = {"._plain.png": "hidden", ".ipynb_checkpoints": "hidden", "notes.docx": "no image",
           "pipe.png": "no regular",
           "alone.png": "a mask without its image", "dangling.png": "a link to nothing"}  # fmt: skip


def draw(root: pathlib.Path) -> None:
  """Writes all of them below root/images and root/masks."""
  for name, oddity in ODDITIES.items():
    oddity.write(root / "images" / name, root / "masks" / name)
  (root / "images/._plain.png").write_bytes(b"resource fork")
  (root / "images/.ipynb_checkpoints").mkdir()
  (root / "images/.ipynb_checkpoints/plain-checkpoint.png").write_bytes(b"")
  (root / "images/notes.docx").write_bytes(b"")
  (root / "notes.txt").write_text("plain\n")  # no list of a split
  os.mkfifo(root / "images/pipe.png")
  (root / "images/dangling.png").symlink_to(root / "nowhere.png")
  _save(root / "masks/alone.png", LABEL)
