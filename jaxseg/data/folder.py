"""Anybody's pictures and masks: `images/` + `masks/`, class list and label map in the config.

Splits, by the first rule that fits:
1. folders images/SPLIT and masks/SPLIT;
2. lists SPLIT.txt beside images/, one picture name a line;
3. neither: a picture is in "val" when the SHA-256 of its name says so (one in ten),
   else in "train". The rule looks at nothing else, so added pictures move no other;
   only where it leaves val empty, the picture with the smallest hash goes there.

classes.txt beside images/, one name a line in the order of the ids, is no such list: `class_names`
reads it.
"""

import hashlib
import os
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from jaxseg.data import files, images, pairs, preparing
from jaxseg.data.source import DataError, DatasetInfo, color_map, make_info
from jaxseg.types import IGNORE_LABEL

LAYOUT = """  images/   pictures NAME.png, NAME.jpg or NAME.jpeg
  masks/    masks NAME.png: one class id a pixel, grey or palette
  (or images/SPLIT/ and masks/SPLIT/, or lists train.txt, val.txt beside images/)"""
CLASSES_FILE = "classes.txt"
_VAL_SHARE = 10  # one picture in ten


class Folder(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "folder"


def info(config_data: Any) -> DatasetInfo:
  """Names from `config_data.classes`, colours by the PASCAL VOC rule."""
  classes = tuple(config_data.classes)
  return make_info("folder", classes, color_map(len(classes)))


def open_split(config_data: Any, split: str) -> preparing.RecordSource:
  """Reads `manual_dir`, `data_dir`, `classes` and `label_map`.

  Raises:
    DataError: no `manual_dir`, another layout, or bad files.
  """
  return preparing.open_split(original(config_data), split, data_dir=config_data.data_dir)


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`.

  Raises:
    DataError: no `manual_dir`, or a label map that does not fit.
  """
  if not config_data.manual_dir:
    raise DataError(f"folder: data.manual_dir is empty; set it to a folder with\n{LAYOUT}")
  root = epath.Path(config_data.manual_dir).expanduser()
  return pairs.original(
    Folder,
    root,
    find=lambda: find_pairs(config_data.manual_dir),
    watch=("images", "masks", *(path.name for path in _lists(root))),
    table=mapping(config_data),
  )


def mapping(config_data: Any) -> Int[np.ndarray, "65536"]:
  """The look-up table of `config_data.label_map`, ((raw, train), ...).

  An empty map means that masks hold train ids already. 255 is "no label" unless the
  map says otherwise; any other id that is not listed is an error in the mask.
  """
  count = info(config_data).num_classes
  rules = {IGNORE_LABEL: IGNORE_LABEL}
  if len(config_data.label_map):
    for rule in config_data.label_map:
      if len(rule) != 2:
        raise DataError(f"folder: label_map has {tuple(rule)}; expected pairs (raw id, train id)")
      rules[int(rule[0])] = int(rule[1])
  else:
    rules |= {i: i for i in range(count)}
  return images.label_table(rules, num_classes=count, where="folder")


def find_pairs(manual_dir: str) -> dict[str, list[pairs.Pair]]:
  """Split → pairs below `manual_dir`, by the rules in the header.

  Raises:
    DataError: not the expected layout, or a missing file.
  """
  root = epath.Path(manual_dir).expanduser()
  pairs.require(root, ("images", "masks"), name="folder", layout=LAYOUT)
  splits = sorted(path.name for path in (root / "images").iterdir() if path.is_dir())
  if splits:
    pairs.require(root, [f"masks/{split}" for split in splits], name="folder", layout=LAYOUT)
    return {split: pairs.list_pairs(root, f"images/{split}", f"masks/{split}") for split in splits}
  lists = _lists(root)
  if lists:
    return {path.name.removesuffix(".txt"): _listed(root, path) for path in lists}
  members = {"train": [], "val": []}
  for pair in pairs.list_pairs(root, "images", "masks"):
    members[split_of(pair.id)].append(pair)
  if not members["val"] and len(members["train"]) > 1:
    members["val"] = [min(members["train"], key=lambda pair: _hash(pair.id))]
    members["train"].remove(members["val"][0])
  return members


def class_names(config_data: Any) -> tuple[str, ...]:
  """The names that the folder itself tells, for a `config_data.classes`.

  Those of classes.txt; else "class0", "class1", ... up to the largest id that `label_map` gives, or, without
  one, that any mask holds. For that every mask is read.

  Raises:
    DataError: another layout, a mask that is no PNG of ids, or ids that say no classes.
  """
  if not config_data.manual_dir:
    raise DataError(f"folder: data.manual_dir is empty; set it to a folder with\n{LAYOUT}")
  root = epath.Path(config_data.manual_dir).expanduser()
  if (root / CLASSES_FILE).exists():
    names = (line.strip() for line in (root / CLASSES_FILE).read_text().splitlines())
    return tuple(name for name in names if name)
  if len(config_data.label_map):
    ids = {int(rule[-1]) for rule in config_data.label_map}
  else:
    ids = _ids({pair.mask for members in find_pairs(config_data.manual_dir).values() for pair in members})
  ids -= {IGNORE_LABEL}
  found = f"folder: the masks in {config_data.manual_dir} hold {_shown(ids)}"
  if len(ids) < 2:
    raise DataError(
      f"{found} beside {IGNORE_LABEL}, which is no label; expected at least two classes: map the ids with"
      f" data.label_map, such as ((0,0),({IGNORE_LABEL},1)) where {IGNORE_LABEL} is the object"
    )
  if max(ids) > IGNORE_LABEL:
    raise DataError(
      f"{found}; classes are 0 to {IGNORE_LABEL - 1}: map the ids with data.label_map,"
      " such as ((0,0),(1000,1))"
    )
  return tuple(f"class{i}" for i in range(max(ids) + 1))


def _ids(masks: set[str]) -> set[int]:
  """What the masks hold."""

  def ids(path: str) -> set[int]:
    data = files.read_bytes(path)
    picture = images.load(data, path, "mask")
    if picture.mode not in images.MASK_MODES:
      raise DataError(
        f"mask {path} is {picture.mode}; expected one class id a pixel"
        " (8-bit or 16-bit grey, or a palette PNG)"
      )
    return set(np.unique(images.decode_mask(data)).tolist())

  with futures.ThreadPoolExecutor() as pool:
    return set().union(*pool.map(ids, sorted(masks)))


def _shown(ids: set[int]) -> str:
  first = sorted(ids)[:8]
  return f"the ids {', '.join(map(str, first))}{', ...' if len(ids) > len(first) else ''}" if ids else "no id"


def _lists(root: epath.Path) -> list[epath.Path]:
  """The files that name the pictures of a split."""
  return sorted(path for path in root.glob("*.txt") if path.name != CLASSES_FILE)


def split_of(name: str) -> str:
  """From a picture's name without suffix, and nothing else: "train" or "val"."""
  return "val" if _hash(name) % _VAL_SHARE == 0 else "train"


def _hash(name: str) -> int:
  return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def _listed(root: epath.Path, path: epath.Path) -> list[pairs.Pair]:
  stems = []
  for name in map(os.path.basename, pairs.read_names(path)):
    stem, suffix = os.path.splitext(name)
    # "a.b" is a name with a dot in it, "a.png" one with its suffix.
    stems.append(stem if suffix.lower() in pairs.IMAGE_SUFFIXES else name)
  return pairs.list_pairs(root, "images", "masks", stems=stems)
