"""Data sets that are pairs of files, a picture and a mask: finding them, storing them, reading them back.

A data set is a subclass of `PairBuilder` and an `Original` (made by `original`) that
says where its pairs lie and what its ids mean. Pictures are stored byte for byte, masks as
their raw ids (`packed.py`; copies that were prepared before hold the masks' own files, and are
read, too), which become train ids when a mask is read. Masks that are no pictures of ids
(colours, MATLAB files, run lengths) become PNG by the data set's own `read`.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Int, Integer

from jaxseg.data import files, images, packed, preparing
from jaxseg.data.source import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class Pair(NamedTuple):
  """One item: `id` is unique in its split, `extra` what the data set's `read` needs besides the files."""

  id: str
  image: str
  mask: str
  extra: Any = None

  @property
  def paths(self) -> tuple[str, ...]:
    """The files that belong to this item alone."""
    return (self.image, self.mask) if self.extra is None else (self.image,)


class Example(NamedTuple):
  """What is stored: both pictures encoded."""

  id: str
  image: bytes
  mask: bytes


# A pair → its examples: one, unless a large picture is cut into tiles.
Read = Callable[[Pair], Iterable[Example]]


class PairBuilder(preparing.FileBuilder, skip_registration=True):
  """TFDS builder over (picture, mask) files; a data set sets `name` and `VERSION`."""

  VERSION = tfds.core.Version("1.0.0")


def read(pair: Pair) -> list[Example]:
  """Both files as they are."""
  return [Example(pair.id, files.read_bytes(pair.image), files.read_bytes(pair.mask))]


def original(
  builder: type[PairBuilder],
  root: epath.Path | None,
  *,
  find: Callable[[], dict[str, list[Pair]]],
  watch: Iterable[str],
  table: Int[np.ndarray, "65536"],
  train_table: Int[np.ndarray, "65536"] | None = None,
  read: Read = read,
  absent: Mapping[str, str] | None = None,
  kind: Any = np.uint8,
) -> preparing.Original:
  """The data set below `root` (None = only what is prepared).

  Args:
    builder: gives the name.
    root: of the source, see `inside`.
    find: split → pairs.
    watch: paths below the source; see `preparing.Original`.
    table: raw id → train id (`images.label_table`); -1 is an error in the mask.
    train_table: another one for reading what was stored, where several share a prepared copy.
    read: a pair's examples; a function at the top of a module, since workers get it pickled.
    absent: split → why it cannot be had.
    kind: type of the train ids.
  """
  return preparing.Original(
    builder=builder,
    root="" if root is None else os.fspath(root),
    find=find,
    load=functools.partial(load, read, table),
    # Ids were checked when they were stored: no -1 is left.
    decode=functools.partial(decode, (table if train_table is None else train_table).astype(kind)),
    watch=() if root is None else tuple(os.fspath(root / path) for path in watch),
    salt=table.tobytes(),
    absent=absent or {},
  )


def load(read: Read, table: Int[np.ndarray, "65536"], pair: Pair) -> list[dict[str, Any]]:
  """The records of a pair.

  Raises:
    DataError: see `images.check_pair`.
  """
  records = []
  for example in read(pair):
    images.check_pair(example.image, example.mask, image_path=pair.image, mask_path=pair.mask, table=table)
    # Ids, packed, are read in a small part of the time that a PNG takes (benchmarks/host.py).
    mask = packed.pack(images.decode_mask(example.mask))
    records.append({"image": example.image, "label": mask, "id": example.id})
  return records


def decode(table: Integer[np.ndarray, "65536"], record: Mapping[str, Any]) -> dict[str, Any]:
  """The example of a record, raw ids as train ids."""
  return {
    "image": images.decode_image(record["image"]),
    "label": images.train_ids(images.decode_mask(record["label"]), table),
    "id": record["id"].decode(),
  }


def inside(manual_dir: str, *folders: str) -> epath.Path | None:
  """`manual_dir`, or the folder in it that the archive unpacks to: people give either. None for ""."""
  if not manual_dir:
    return None
  root = epath.Path(manual_dir).expanduser()
  for folder in folders:
    if (root / folder).exists():
      root = root / folder
  return root


def require(root: epath.Path, paths: Iterable[str], *, name: str, layout: str) -> None:
  """Checks that `root` looks like `layout`.

  Raises:
    DataError: the first of `paths` that does not exist, with the whole layout.
  """
  for path in ("", *paths):
    where = root / path if path else root
    if not where.exists():
      raise DataError(f"{name}: {where} does not exist; data.manual_dir must be a folder with\n{layout}")


def find_splits(
  root: epath.Path,
  splits: Mapping[str, tuple[str, str]],
  *,
  name: str,
  layout: str,
  listed: Callable[[epath.Path, str, str], list[Pair]] | None = None,
) -> dict[str, list[Pair]]:
  """Split → pairs, where each split is a folder of pictures and one of masks.

  A split neither of whose folders is there is left out; one of them alone is an error,
  and so is a `root` without any split. `listed` replaces `list_pairs`.
  """
  present = {
    split: folders for split, folders in splits.items() if any((root / folder).exists() for folder in folders)
  }
  require(
    root, [path for folders in (present or splits).values() for path in folders], name=name, layout=layout
  )
  return {split: (listed or list_pairs)(root, *folders) for split, folders in present.items()}


def list_pairs(
  root: epath.Path,
  image_dir: str,
  mask_dir: str,
  *,
  stems: list[str] | None = None,
  image_end: str = "",
  mask_end: str = ".png",
) -> list[Pair]:
  """The pairs root/image_dir/NAME.{png,jpg,jpeg} and root/mask_dir/NAME.png, in `stems`' order or sorted.

  Args:
    root: what the two folders are in.
    image_dir: of the pictures.
    mask_dir: of the masks.
    stems: the NAMEs; None takes every picture.
    image_end: of the pictures' names before the suffix, where NAME is without it.
    mask_end: of the masks' names, with suffix.

  Raises:
    DataError: a listed picture, or a picture's mask, is missing; two pictures share a name.
  """
  pictures, folder = os.fspath(root / image_dir), os.fspath(root / mask_dir)
  by_stem: dict[str, str] = {}
  for name in files.names(pictures):
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in IMAGE_SUFFIXES or not stem.endswith(image_end):
      continue
    stem = stem.removesuffix(image_end)
    if stem in by_stem:
      raise DataError(f"{pictures} has {by_stem[stem]} and {name}; one picture a name, remove one")
    by_stem[stem] = name
  masks = set(files.names(folder))
  pairs = []
  for stem in by_stem if stems is None else stems:
    if stem not in by_stem:
      raise DataError(f"image {pictures}/{stem}{image_end} (.png, .jpg or .jpeg) is listed but missing")
    image, mask = f"{pictures}/{by_stem[stem]}", f"{folder}/{stem}{mask_end}"
    if stem + mask_end not in masks:
      raise DataError(f"mask {mask} of image {image} is missing")
    pairs.append(Pair(stem, image, mask))
  return pairs


def read_names(path: epath.Path) -> list[str]:
  """The first word of each line: how lists of pictures are written."""
  return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
