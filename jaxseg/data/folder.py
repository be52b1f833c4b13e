"""Anybody's images and masks: `images/` + `masks/`, class list and label map in the config.

Splits, by the first rule that fits:
1. folders images/SPLIT and masks/SPLIT, where one is called train, val, test or as the config's splits;
2. lists SPLIT.txt beside images/ of those names, one image a line;
3. neither: an image is in "val" when the SHA-256 of its name says so (one in ten),
   else in "train". The rule looks at nothing else, so added images move no other;
   only where it leaves val empty, the image with the smallest hash goes there.

classes.txt beside images/ holds one name a line in the order of the ids, and where masks are drawn in
colours `name r g b`; CVAT's labelmap.txt does the same. How files are read is in `reading.py`, how they are
found in `listing.py`.
"""

import dataclasses
import functools
import hashlib
import os
import re
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from jaxseg.classes import MOST_AT_ONCE, class_bits, label_type
from jaxseg.data import files, images, listing, pairs, preparing, reading
from jaxseg.data.source import DataError, DatasetInfo, color_map, make_info
from jaxseg.types import IGNORE_LABEL

LAYOUT = """  images/   images NAME.png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp, folders below are fine
  masks/    masks NAME.png (or .tif, .bmp, .webp, .npy): one class id a pixel, or colours of classes.txt
            (with data.multi_label also a channel for each class, or NAME_CLASS.png: all but 0 is the class)
  (or images/SPLIT/ and masks/SPLIT/, or lists train.txt, val.txt beside images/)"""
CLASSES_FILE = "classes.txt"
LABELMAP_FILE = "labelmap.txt"  # CVAT's
_VAL_SHARE = 10  # one image in ten
_READER = b"2"  # another way of reading the same files is another preparation


class Folder(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "folder"


def info(config_data: Any) -> DatasetInfo:
  """Names from `config_data.classes`, colours by the PASCAL VOC rule; `multi_label`."""
  classes = tuple(config_data.classes)
  return make_info("folder", classes, color_map(len(classes)), multi_label=_is_multi_label(config_data))


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`.

  Raises:
    DataError: no `manual_dir`, or a label map that does not fit.
  """
  if not config_data.manual_dir:
    raise DataError(f"folder: data.manual_dir is empty; set it to a folder with\n{LAYOUT}")
  root = epath.Path(config_data.manual_dir).expanduser()
  rule = reading_rule(config_data)
  table = mapping(config_data)
  made = pairs.original(
    Folder,
    root,
    find=lambda: find_pairs(config_data),
    watch=(
      "images",
      "masks",
      CLASSES_FILE,
      LABELMAP_FILE,
      *(f"{name}.txt" for name in _split_names(config_data)),
    ),
    table=table,
    kind=label_type(len(config_data.classes)) if _is_multi_label(config_data) else np.uint8,
    read=functools.partial(_read, rule),
  )
  settings = repr((rule.value_range, sorted(rule.colors.items()), _mask_suffix(config_data))).encode()
  if rule.channels != 3:
    settings += f"{rule.channels} channels".encode()
  return dataclasses.replace(made, salt=made.salt + _READER + settings, survey=lambda: _survey(config_data))


def _read(rule: reading.Rule, pair: pairs.Pair) -> list[pairs.Example]:
  image, masks = files.read_bytes(pair.image), pair.extra
  if masks is not None:
    bits = class_bits(MOST_AT_ONCE).tolist()
    mask = reading.joined([(bits[number], path, files.read_bytes(path)) for number, path in masks])
  else:
    mask = files.read_bytes(pair.mask)
  stored = reading.read_pair(image, mask, image_path=pair.image, mask_path=pair.mask, rule=rule)
  return [pairs.Example(pair.id, *stored)]


def reading_rule(config_data: Any) -> reading.Rule:
  """How files are read: `config_data.value_range`, and the colours of classes.txt or labelmap.txt.

  Raises:
    DataError: a range that is none, or colours that do not fit.
  """
  value_range = tuple(getattr(config_data, "value_range", ()))
  if value_range and (len(value_range) != 2 or not -np.inf < value_range[0] < value_range[1] < np.inf):
    raise DataError(
      f"data.value_range is {value_range}; expected (low, high), the values that become 0 and 255, such as"
      " (0,65535), or () for images of 8 bits"
    )
  value_range, channels = tuple(map(float, value_range)), int(getattr(config_data, "channels", 3))
  listed, is_several = _listed_classes(config_data), _is_multi_label(config_data)
  bits = class_bits(len(listed)).tolist() if is_several else range(len(listed))
  several = len(config_data.classes) if is_several else 0
  colors = {color: i for i, (_, color) in zip(bits, listed, strict=True) if color is not None}
  if not colors:
    return reading.Rule(value_range, channels=channels, classes=several)
  if len(colors) < len(listed):
    lacking = [name for name, color in listed if color is None] or ["two classes"]
    raise DataError(
      f"folder: {CLASSES_FILE} gives colours, but {lacking[0]!r} has none, or one that another class has"
    )
  names, classes = [name for name, _ in listed], list(config_data.classes)
  if classes and not len(config_data.label_map):
    if set(names) != set(classes):
      raise DataError(
        f"folder: data.classes is {', '.join(classes)}, but {CLASSES_FILE} has {', '.join(names)}; leave one"
        " out, or give both the same names"
      )
    colors = {color: bits[classes.index(name)] for name, color in listed}
  return reading.Rule(value_range, colors, channels, several)


def _listed_classes(config_data: Any) -> list[tuple[str, tuple[int, int, int] | None]]:
  """(name, colour) of each class that a file beside images/ tells; [] without such a file."""
  root = epath.Path(config_data.manual_dir).expanduser()
  if (root / CLASSES_FILE).exists():
    lines = [line.strip() for line in (root / CLASSES_FILE).read_text().splitlines()]
    return [_class_line(line) for line in lines if line]
  if (root / LABELMAP_FILE).exists():
    lines = [line.strip() for line in (root / LABELMAP_FILE).read_text().splitlines()]
    return [_labelmap_line(line) for line in lines if line and not line.startswith("#")]
  return []


def _class_line(line: str) -> tuple[str, tuple[int, int, int] | None]:
  match = re.fullmatch(r"(.*\S)[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})", line)
  if match is None:
    return line, None
  return match[1].rstrip(","), _color([int(v) for v in match.groups()[1:]], line)


def _labelmap_line(line: str) -> tuple[str, tuple[int, int, int] | None]:
  name, _, rest = line.partition(":")
  values = rest.split(":")[0].split(",")
  if len(values) != 3 or not all(v.strip().isdigit() for v in values):
    raise DataError(
      f"folder: {LABELMAP_FILE} has the line {line!r}; expected `name:r,g,b::`, as CVAT writes it"
    )
  return name, _color([int(v) for v in values], line)


def _color(values: list[int], line: str) -> tuple[int, int, int]:
  if max(values) > 255:
    raise DataError(f"folder: {line!r} has a colour above 255; expected `name r g b`, each 0 to 255")
  return values[0], values[1], values[2]


def _mask_suffix(config_data: Any) -> str:
  return getattr(config_data, "mask_suffix", "")


def _is_multi_label(config_data: Any) -> bool:
  return bool(getattr(config_data, "multi_label", False))


def _split_names(config_data: Any) -> list[str]:
  given = (getattr(config_data, key, "") for key in ("train_split", "eval_split"))
  return list(
    dict.fromkeys(["train", "val", "test", *(name for split in given for name in split.split("+") if name)])
  )


def mapping(config_data: Any) -> Int[np.ndarray, "65536"]:
  """The look-up table of `config_data.label_map`, ((raw, train), ...).

  An empty map means that masks hold train ids already: with `multi_label` sums of the classes' bits. 255 is
  "no label" unless the map says otherwise; any other id that is not listed is an error in the mask.
  """
  count, several = info(config_data).num_classes, _is_multi_label(config_data)
  rules = {IGNORE_LABEL: IGNORE_LABEL}
  if len(config_data.label_map):
    given = set()
    for rule in config_data.label_map:
      pair = tuple(rule) if isinstance(rule, (tuple, list)) else (rule,)
      if len(pair) != 2 or not all(isinstance(value, (int, np.integer)) for value in pair):
        shown = pair if len(pair) > 1 else rule
        raise DataError(f"folder: label_map has {shown}; expected pairs (raw id, train id) of whole numbers")
      if pair[0] in given:
        raise DataError(f"folder: label_map has raw id {pair[0]} twice; give each id once")
      given.add(pair[0])
      rules[int(pair[0])] = int(pair[1])
  else:
    every = int(class_bits(count).sum()) if several else count - 1
    rules |= {i: i for i in range(every + 1) if not (several and i & ~every)}
  return images.label_table(rules, num_classes=count, where="folder", multi_label=several)


def find_pairs(config_data: Any) -> dict[str, list[pairs.Pair]]:
  """Split → pairs below `config_data.manual_dir`, by the rules in the header; says what is skipped.

  Raises:
    DataError: not the expected layout, or a missing file.
  """
  found, problems, notice = _survey(config_data)
  problems.raise_problems()
  if notice:
    print(f"folder: {notice}", flush=True)
  return found


def _survey(config_data: Any) -> tuple[dict[str, list[pairs.Pair]], listing.Survey, str]:
  """Split → pairs, and all that is wrong or left over.

  Raises:
    DataError: not the expected layout.
  """
  root = epath.Path(config_data.manual_dir).expanduser()
  pairs.require(root, ("images", "masks"), name="folder", layout=LAYOUT)
  found = listing.survey(
    os.fspath(root),
    mask_suffix=_mask_suffix(config_data),
    splits=_split_names(config_data),
    classes=tuple(config_data.classes) if _is_multi_label(config_data) else (),
  )
  members = {split: [pairs.Pair(*pair) for pair in members] for split, members in found.pairs.items()}
  if "" in members:
    members = {"train": [], "val": []} | _by_hash(members[""])
  return members, found, found.notice()


def _by_hash(members: list[pairs.Pair]) -> dict[str, list[pairs.Pair]]:
  splits: dict[str, list[pairs.Pair]] = {"train": [], "val": []}
  for pair in members:
    splits[split_of(pair.id)].append(pair)
  if not splits["val"] and len(splits["train"]) > 1:
    splits["val"] = [min(splits["train"], key=lambda pair: _hash(pair.id))]
    splits["train"].remove(splits["val"][0])
  return splits


def class_names(config_data: Any) -> tuple[str, ...]:
  """The names that the folder itself tells, for a `config_data.classes`.

  Those of classes.txt; else "class0", "class1", ... up to the largest id that `label_map` gives, or, without
  one, that any mask holds. For that every mask is read.

  Raises:
    DataError: another layout, a mask that is no PNG of ids, or ids that say no classes.
  """
  if not config_data.manual_dir:
    raise DataError(f"folder: data.manual_dir is empty; set it to a folder with\n{LAYOUT}")
  if listed := _listed_classes(config_data):
    return tuple(name for name, _ in listed)
  if _is_multi_label(config_data):
    raise DataError(
      f"folder: data.classes is empty, and masks of several classes do not tell their names; list them in"
      f" {CLASSES_FILE}, one a line, or give data.classes"
    )
  if len(config_data.label_map):
    ids = {int(rule[-1]) for rule in config_data.label_map}
  else:
    ids = _ids({pair.mask for members in find_pairs(config_data).values() for pair in members})
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
    return set(np.unique(reading.read_ids(files.read_bytes(path), path, reading.Rule())).tolist())

  with futures.ThreadPoolExecutor() as pool:
    return set().union(*pool.map(ids, sorted(masks)))


def _shown(ids: set[int]) -> str:
  first = sorted(ids)[:8]
  return f"the ids {', '.join(map(str, first))}{', ...' if len(ids) > len(first) else ''}" if ids else "no id"


def split_of(name: str) -> str:
  """From a picture's name without suffix, and nothing else: "train" or "val"."""
  return "val" if _hash(name) % _VAL_SHARE == 0 else "train"


def _hash(name: str) -> int:
  return int(hashlib.sha256(name.encode()).hexdigest(), 16)
