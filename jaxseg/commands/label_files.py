"""Label maps as the test servers of the benchmarks take them: `jaxseg eval --output_labels`.

- Cityscapes: the official ids (labelIds, not train ids) in CITY_SEQUENCE_FRAME*.png, as cityscapesScripts'
  evalPixelLevelSemanticLabeling.py looks for them.
- ADE20K (SceneParsing): NAME.png with the ids 1 to 150.
- PASCAL VOC: results/VOC2012/Segmentation/comp6_test_cls/NAME.png with the classes' palette (the development
  kit's layout; comp5 for models without other data is a renamed folder).
- other data: NAME.png with class ids and palette.
"""

import io
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer, UInt8

from jaxseg import lazy
from jaxseg.commands import outputs
from jaxseg.data import cityscapes, files, images, reading
from jaxseg.data.source import DatasetInfo
from jaxseg.errors import UserError, printable

_RGB = reading.Rule()
_PLAIN = (".png", ".jpg", ".jpeg")
_FOLDERS = {"voc": "results/VOC2012/Segmentation/comp6_test_cls"}
_ENDS = {"cityscapes": "_pred_labelIds.png"}


def to_server_ids(label: Integer[np.ndarray, "h w"], *, dataset: str) -> Integer[np.ndarray, "h w"]:
  """Class ids of jaxseg → what the server of `dataset` reads."""
  if dataset == "cityscapes":
    return np.asarray(cityscapes.LABEL_IDS, np.uint8)[label]
  label = np.asarray(label) + (dataset == "ade20k")
  return label.astype(np.uint8 if label.max() < 256 else np.uint16)


def encode(label: Integer[np.ndarray, "h w"], info: DatasetInfo) -> bytes:
  """A PNG of one byte a pixel; with the palette where the ids are those of the classes.

  A label of more than seven classes at once takes two bytes.
  """
  pillow = lazy.load("PIL.Image")
  ids, palette = to_server_ids(label, dataset=info.name), info.drawn.palette
  picture = pillow.fromarray(ids.astype(np.uint16) if len(palette) > 256 else ids)
  if info.name not in ("cityscapes", "ade20k") and len(palette) <= 256:
    picture.putpalette(np.asarray(palette, np.uint8).reshape(-1).tolist())
  data = io.BytesIO()
  picture.save(data, format="PNG", optimize=True)
  return data.getvalue()


def file_name(name: str, dataset: str) -> pathlib.PurePosixPath:
  """Of an image's label map, below the output folder; `name` is the image's id or file name."""
  path = pathlib.PurePosixPath(
    *(part for part in pathlib.PurePosixPath(name).parts if part not in ("/", ".."))
  )
  if not path.name or "\0" in name:
    raise UserError(f"image {printable(name)!r} has no name that a file can have; rename it")
  stem = path.name
  for suffix in reading.IMAGE_SUFFIXES:
    stem = stem.removesuffix(suffix)
  if dataset in ("cityscapes", "ade20k", "voc"):
    path = pathlib.PurePosixPath(stem)  # the servers' names have no folders
  if dataset == "cityscapes":
    stem = stem.removesuffix("_leftImg8bit")
  path = path.with_name(stem + _ENDS.get(dataset, ".png"))
  return pathlib.PurePosixPath(_FOLDERS.get(dataset, "")) / path


def write_labels(
  folder: epath.PathLike,
  pictures: Iterator[tuple[str, UInt8[np.ndarray, "h w c"]]],
  *,
  predict: Callable[[np.ndarray], np.ndarray],
  info: DatasetInfo,
  write: bool,
  progress: Callable[[int], None],
) -> int:
  """Predicts every (name, picture) and writes its file; returns how many.

  Args:
    folder: made where it does not exist.
    pictures: of any sizes.
    predict: picture → class ids of its size.
    info: of the data, whose name says which server.
    write: whether this process writes.
    progress: called with the number of pictures so far.

  Raises:
    UserError: two pictures whose files have one name, or a file that cannot be written.
  """
  seen: dict[str, str] = {}
  for name, picture in pictures:
    path = file_name(name, info.name)
    if str(path) in seen:
      raise UserError(
        f"images {seen[str(path)]!r} and {name!r} would both be written as {str(path)!r}; rename one"
      )
    seen[str(path)] = name
    label = predict(picture)
    if write:
      target = epath.Path(folder) / str(path)
      target.parent.mkdir(parents=True, exist_ok=True)
      outputs.write(target, encode(label, info))
    progress(len(seen))
  return len(seen)


def split_pictures(source: Any) -> Iterator[tuple[str, np.ndarray]]:
  """(id, picture) of a split."""
  for index in range(len(source)):
    example = source[index]
    yield str(example.get("id", index)), np.asarray(example["image"])


def find_pictures(folder: str) -> list[str]:
  """The image files in a folder and the folders in it, sorted.

  Raises:
    UserError: no folder, or none in it.
  """
  root = epath.Path(folder).expanduser()
  if not root.is_dir():
    raise UserError(f"--images {folder!r} is no folder; give the folder of the test pictures")
  found, folders = [], [root]
  while folders:  # epath has no rglob
    for path in folders.pop().iterdir():
      if path.is_dir():
        folders.append(path)
      elif path.suffix.lower() in reading.IMAGE_SUFFIXES:
        found.append(str(path))
  if not found:
    raise UserError(f"--images {folder!r} has no image: {', '.join(reading.IMAGE_SUFFIXES)}")
  return sorted(found)


def folder_pictures(
  paths: list[str], folder: str, rule: reading.Rule = _RGB
) -> Iterator[tuple[str, np.ndarray]]:
  """(path below the folder, picture as stored, as its labels have to lie).

  Raises:
    UserError: a file that cannot be read, with its name.
  """
  root = pathlib.PurePath(str(epath.Path(folder).expanduser()))
  for path in paths:
    data = files.read_bytes(path)
    if (
      rule.channels == 3 and pathlib.PurePath(path).suffix.lower() in _PLAIN and not reading.needs_rule(data)
    ):
      images.check_image(data, path=path)
      picture = images.decode_image(data)
    else:
      picture = reading.read_image(data, path, rule, turn=False)
    yield pathlib.PurePath(path).relative_to(root).as_posix(), picture
