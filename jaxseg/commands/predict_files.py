"""The files of `jaxseg predict`: which there are, what they hold, and what is written for each."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8

from jaxseg import lazy
from jaxseg.commands import outputs
from jaxseg.data.source import as_rgb
from jaxseg.errors import UserError, printable
from jaxseg.hub import Net
from jaxseg.hub.reading import read_image
from jaxseg.types import Preprocess

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".npy")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
LARGE = 6_000_000  # pixels; more go through the network in windows
SHEET = "contact_sheet.png"
_ENDS = (".overlay.png", ".label.png", ".overlay.mp4")  # of what is written for NAME.jpg or NAME.mp4
_SMALLEST = 32


@dataclasses.dataclass(frozen=True)
class File:
  """A file to segment, the name of its results below the output folder, and its rows and columns."""

  path: pathlib.Path
  name: pathlib.PurePath
  size: tuple[int, int] = (0, 0)

  @property
  def is_video(self) -> bool:
    return self.path.suffix.lower() in VIDEOS

  @property
  def is_large(self) -> bool:
    return self.size[0] * self.size[1] > LARGE


def list_files(places: Sequence[str], output: str) -> list[File]:
  """`find_files` without what an earlier run has written, each file once.

  Raises:
    UserError: as there; or two files whose results would have one name.
  """
  sheet = (pathlib.Path(output) / SHEET).resolve()
  files: dict[pathlib.PurePath, File] = {}
  for file in find_files(places):
    if pathlib.Path(file.path).resolve() == sheet:
      continue
    known = files.setdefault(file.name, file)
    if known.path.resolve() != file.path.resolve():
      raise UserError(
        f"{printable(known.path)} and {printable(file.path)} would both be written as"
        f" {printable(file.name)}; segment them one after the other, each with an --output of its own"
      )
  return list(files.values())


def find_files(places: Sequence[str]) -> Iterator[File]:
  """The files themselves, and those in folders; there, hidden ones and results of `predict` are left out.

  Raises:
    UserError: a place that is not there, or nothing that is an image or a video.
  """
  found = False
  if "" in places:
    raise UserError("a file or folder is given as ''; name it, or give . for this folder")
  for place in map(pathlib.Path, places):
    if place.is_dir():
      for folder, inner, files in os.walk(place):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
          path = pathlib.Path(folder) / name
          if path.suffix.lower() not in IMAGES + VIDEOS or name.startswith(".") or name.endswith(_ENDS):
            continue
          if path.is_file():
            found = True
            yield File(path, path.relative_to(place))
    elif place.is_file():
      found = True
      yield File(place, pathlib.PurePath(place.name))
    else:
      raise UserError(f"there is no file or folder {printable(place)!r}")
  if not found:
    raise UserError(
      f"there is no image or video in {', '.join(map(printable, places))}; looked for"
      f" {', '.join(IMAGES + VIDEOS)}"
    )


def read_size(path: pathlib.Path, preprocess: Preprocess) -> tuple[int, int]:
  """(rows, columns) of an image file, upright, from its header; what Pillow does not know is read.

  Raises:
    UserError: it is no image, or too small.
  """
  if preprocess.channels != 3 or path.suffix.lower() == ".npy":
    size = read_image(path, preprocess=preprocess).shape[:2]
    check_size(path, size)
    return size
  pillow = lazy.load("PIL.Image")
  try:
    with pillow.open(path) as image:
      columns, rows = image.size
      if image.getexif().get(0x0112, 1) >= 5:  # orientations that swap rows and columns
        rows, columns = columns, rows
  except pillow.DecompressionBombError:
    raise UserError(f"{printable(path)} has more than {2 * pillow.MAX_IMAGE_PIXELS:,} pixels") from None
  except (OSError, ValueError, SyntaxError) as error:
    raise UserError(
      f"{printable(path)} cannot be read ({type(error).__name__}): damaged, or no image"
    ) from None
  check_size(path, (rows, columns))
  return rows, columns


def check_size(
  path: pathlib.Path, size: tuple[int, int], inputs: Sequence[tuple[int, int]] | None = None
) -> None:
  """Raises UserError where a network cannot take so small an image, or one of the sizes that it gets."""
  for rows, columns in inputs or [size]:
    if min(rows, columns) < _SMALLEST:
      reached = "" if (rows, columns) == tuple(size) else f" and would reach the network as {rows}x{columns}"
      raise UserError(
        f"{printable(path)} is {size[0]}x{size[1]}{reached}; a side needs at least {_SMALLEST} pixels"
      )


def blend(
  image: UInt8[np.ndarray, "h w 3"],
  labels: Integer[np.ndarray, "h w"],
  palette: UInt8[np.ndarray, "k 3"],
  opacity: float,
  *,
  multi_label: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
  """The image with the classes' colours laid over it, with `multi_label` only where there is a class.

  In strips, as a large image has no room for floats.
  """
  mixed = np.empty_like(image)
  for top in range(0, len(image), 256):
    rows = slice(top, top + 256)
    colors = palette[labels[rows]]
    mixed[rows] = np.round(image[rows] * np.float32(1 - opacity) + colors * np.float32(opacity))
    if multi_label:
      mixed[rows] = np.where(labels[rows][..., None] == 0, image[rows], mixed[rows])
  return mixed


def write_results(
  place: pathlib.Path,
  image: UInt8[np.ndarray, "h w c"],
  labels: Integer[np.ndarray, "h w"],
  probabilities: Float[np.ndarray, "h w k"] | None,
  *,
  net: Net,
  opacity: float,
) -> None:
  """NAME.overlay.png, NAME.label.png and perhaps NAME.probabilities.npz, for `place` = .../NAME.jpg."""
  pillow = lazy.load("PIL.Image")
  palette = net.info.drawn.palette
  place.parent.mkdir(parents=True, exist_ok=True)

  def write(kind: str, data: bytes) -> None:
    # With the image's own suffix: a.png and a.jpg are two images.
    outputs.write(outputs.epath.Path(place.with_name(f"{place.name}.{kind}")), data)

  write("overlay.png", png(blend(as_rgb(image), labels, palette, opacity, multi_label=net.info.multi_label)))
  if len(palette) <= 256:
    ids = pillow.fromarray(labels.astype(np.uint8))
    ids.putpalette(palette.reshape(-1).tolist())
  else:
    ids = pillow.fromarray(labels.astype(np.uint16))
  buffer = io.BytesIO()
  ids.save(buffer, "PNG")
  write("label.png", buffer.getvalue())
  if probabilities is not None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probabilities=probabilities.astype(np.float16), classes=np.array(net.classes))
    write("probabilities.npz", buffer.getvalue())


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """An RGB image as the bytes of a PNG file."""
  cv2 = lazy.load("cv2")
  # Level 1: photographs hardly shrink further, and the encoder would take longer than a small network.
  bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
