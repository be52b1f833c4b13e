"""Anybody's pictures and masks: `images/` + `masks/`, class list and label map in the config.

Splits, by the first rule that fits:
1. folders images/SPLIT and masks/SPLIT;
2. lists SPLIT.txt beside images/, one picture name a line;
3. neither: a picture is in "val" when the SHA-256 of its name says so (one in ten),
   else in "train". The rule looks at nothing else, so added pictures move no other;
   only where it leaves val empty, the picture with the smallest hash goes there.
"""

import hashlib
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from jaxseg.data import images, pairs, preparing
from jaxseg.data.source import DataError, DatasetInfo, color_map, make_info
from jaxseg.types import IGNORE_LABEL

LAYOUT = """  images/   pictures NAME.png, NAME.jpg or NAME.jpeg
  masks/    masks NAME.png: one class id a pixel, grey or palette
  (or images/SPLIT/ and masks/SPLIT/, or lists train.txt, val.txt beside images/)"""
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
    watch=("images", "masks", *sorted(path.name for path in root.glob("*.txt"))),
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
  lists = sorted(root.glob("*.txt"))
  if lists:
    return {path.name.removesuffix(".txt"): _listed(root, path) for path in lists}
  members = {"train": [], "val": []}
  for pair in pairs.list_pairs(root, "images", "masks"):
    members[split_of(pair.id)].append(pair)
  if not members["val"] and len(members["train"]) > 1:
    members["val"] = [min(members["train"], key=lambda pair: _hash(pair.id))]
    members["train"].remove(members["val"][0])
  return members


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
