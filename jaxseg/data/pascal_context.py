"""PASCAL Context on the pictures of VOC 2010: the 59 frequent classes, or 60 with background.

R. Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the
Wild", CVPR 2014; distributed as trainval_merged.json of "PASCAL in Detail". The ids of the
JSON are those of the 459 labels of the full set; masks in SegmentationClassContext/ hold 0
for background and 1 to 59, the classes in the order of their ids among the 459.
"""

import json
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from jaxseg.data import files, images, pairs, preparing
from jaxseg.data.source import DataError, DatasetInfo, color_map, make_info
from jaxseg.errors import UserError, printable
from jaxseg.types import IGNORE_LABEL

CLASSES = (
  "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building",
  "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog",
  "door", "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike",
  "mountain", "mouse", "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves",
  "sidewalk", "sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall",
  "water", "window", "wood",
)  # fmt: skip
# Of each class among the 459 labels.
IDS_459 = (
  2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158,
  159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360,
  366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
JSON = "trainval_merged.json"
MASKS = "SegmentationClassContext"
LISTS = "ImageSets/SegmentationContext"
LAYOUT = """  JPEGImages/NAME.jpg of VOC 2010, and one of
    trainval_merged.json   (PASCAL in Detail: 4,998 train, 5,105 val)
    SegmentationClassContext/NAME.png, with ImageSets/SegmentationContext/train.txt and val.txt
  (this folder, or the one that has VOCdevkit/VOC2010/)"""


class PascalContext(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header. One prepared copy serves 59 and 60 classes."""

  name = "pascal_context"


def info(config_data: Any) -> DatasetInfo:
  """Names and colours; there is no official palette, so these are VOC's rule, background black."""
  colors = color_map(len(CLASSES))
  if _has_background(config_data.name):
    return make_info(config_data.name, ("background", *CLASSES), np.concatenate([colors[:1] * 0, colors]))
  return make_info(config_data.name, CLASSES, colors)


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`; with both kinds of masks the PNG ones count."""
  root = pairs.inside(config_data.manual_dir, "VOCdevkit", "VOC2010")
  return pairs.original(
    PascalContext,
    root,
    find=lambda: _find(root),
    watch=(LISTS, "JPEGImages", MASKS, JSON),
    table=_table(True),
    train_table=_table(_has_background(config_data.name)),
    read=read,
    absent={"test": "there are no labels of test pictures; use val"},
  )


def _has_background(name: str) -> bool:
  return name == "pascal_context_60"


def _table(background: bool) -> Int[np.ndarray, "65536"]:
  first = 0 if background else IGNORE_LABEL
  rules = {0: first, 255: IGNORE_LABEL} | {i: i - (not background) for i in range(1, 60)}
  return images.label_table(rules, num_classes=59 + background, where="pascal_context")


def _find(root: epath.Path) -> dict[str, list[pairs.Pair]]:
  pairs.require(root, ("JPEGImages",), name="pascal_context", layout=LAYOUT)
  if (root / JSON).exists() and not (root / MASKS).exists():
    return _find_json(root)
  lists = {split: f"{LISTS}/{split}.txt" for split in ("train", "val")}
  pairs.require(root, (MASKS, *lists.values()), name="pascal_context", layout=LAYOUT)
  return {
    split: pairs.list_pairs(root, "JPEGImages", MASKS, stems=pairs.read_names(root / path))
    for split, path in lists.items()
  }


def _find_json(root: epath.Path) -> dict[str, list[pairs.Pair]]:
  """The file is read whole: it holds every mask, as run lengths, and no picture."""
  try:
    content = json.loads((root / JSON).read_text())
    regions: dict[int, list[tuple[int, Any]]] = {image["image_id"]: [] for image in content["images"]}
    for region in content["annos_segmentation"]:
      regions[region["image_id"]].append((region["category_id"], region["segmentation"]))
    members = [(image["phase"], image["file_name"], image["image_id"]) for image in content["images"]]
    shapes = {image["image_id"]: (image["height"], image["width"]) for image in content["images"]}
    if not all(isinstance(text, str) for phase, name, _ in members for text in (phase, name)):
      raise ValueError("a phase or a file_name is no text")
    if not all(type(side) is int and 0 < side <= 65_536 for shape in shapes.values() for side in shape):
      raise ValueError("a height or width is no number of pixels")
    if not all(type(region[0]) is int for regions_of in regions.values() for region in regions_of):
      raise ValueError("a category_id is no whole number")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise DataError(f"{root / JSON} is truncated or another file ({error!r}); download it again") from None
  found: dict[str, list[pairs.Pair]] = {"train": [], "val": []}
  pictures = set(files.names(os.fspath(root / "JPEGImages")))
  for phase, name, key in sorted(members, key=lambda member: member[1]):
    if phase in found:
      path = os.fspath(root / "JPEGImages" / name)
      if name not in pictures:
        raise DataError(f"image {path} is listed in {root / JSON} but missing")
      extra = (shapes[key], tuple(regions[key]))
      found[phase].append(pairs.Pair(os.path.splitext(name)[0], path, os.fspath(root / JSON), extra))
  return found


def read(pair: pairs.Pair) -> list[pairs.Example]:
  """The pair; run lengths drawn in the order of the file become a PNG of ids 0 to 59.

  Raises:
    DataError: an id that is none of the 59 classes, or run lengths that do not fill the picture.
  """
  image = files.read_bytes(pair.image)
  if pair.extra is None:
    return [pairs.Example(pair.id, image, files.read_bytes(pair.mask))]
  shape, regions = pair.extra
  mask = np.zeros(shape, np.uint8)
  for category, run_lengths in regions:
    if category not in IDS_459:
      raise DataError(
        f"mask {pair.id} in {pair.mask} has id {category}, which is no class; known ids: {IDS_459}"
      )
    try:
      region = decode_runs(run_lengths["counts"], tuple(run_lengths["size"]))
      mask[region == 1] = IDS_459.index(category) + 1
    except (ValueError, IndexError, KeyError, TypeError) as error:
      raise DataError(
        f"mask {pair.id} in {pair.mask} is damaged ({printable(images.one_line(error))}); download it again"
      ) from None
  return [pairs.Example(pair.id, image, images.encode_mask(mask))]


def decode_runs(counts: str | list[int], size: tuple[int, int]) -> UInt8[np.ndarray, "{size[0]} {size[1]}"]:
  """COCO's run lengths, column by column, zeros first; a string is their compressed form.

  There each number is written in groups of five bits, lowest first, as characters from "0" on;
  the sixth bit says that another group follows, and from the fourth number on it is the
  difference to the one before the last.

  Raises:
    UserError: the runs do not fill `size`.
  """
  runs: list[int] = [] if isinstance(counts, str) else list(counts)
  place = 0
  while isinstance(counts, str) and place < len(counts):
    value, shift, more = 0, 0, True
    while more:
      group = ord(counts[place]) - 48
      value |= (group & 31) << shift
      more, shift, place = bool(group & 32), shift + 5, place + 1
    if group & 16:  # the highest bit of the last group is the sign
      value -= 1 << shift
    runs.append(value + runs[-2] if len(runs) > 2 else value)
  if sum(runs) != size[0] * size[1] or min(runs, default=0) < 0:
    raise UserError(f"run lengths of {sum(runs)} pixels for {size[0]}x{size[1]}")
  return np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(size, order="F")
