"""COCO-Stuff, 80 things and 91 stuff classes: all 164k pictures of COCO 2017, and the first 10k.

H. Caesar, J. Uijlings, V. Ferrari, "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018
(https://arxiv.org/abs/1612.03716). Of the 182 categories eleven were never used, which leaves 171.
The 164k masks are PNG with category - 1, and 255 for none; the 10k ones MATLAB files with the
category itself, and 0 for none. Neither has to be converted first.
"""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from jaxseg.data import files, images, pairs, preparing
from jaxseg.data.source import DatasetInfo, color_map, make_info
from jaxseg.types import IGNORE_LABEL

CLASSES = (
  "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
  "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse",
  "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie",
  "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
  "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon",
  "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
  "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse",
  "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
  "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", "banner", "blanket", "branch",
  "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other",
  "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt",
  "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood",
  "flower", "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill",
  "house", "leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin",
  "net", "paper", "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing",
  "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other",
  "skyscraper", "snow", "solid-other", "stairs", "stone", "straw", "structural-other", "table", "tent",
  "textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete", "wall-other",
  "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind",
  "window-other", "wood",
)  # fmt: skip
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # categories, of 1 to 182, without any pixel
CATEGORIES = tuple(category for category in range(1, 183) if category not in UNUSED)

LAYOUT_164K = """  train2017/  stuffthingmaps/train2017/   118,287 pairs NAME.jpg, NAME.png
  val2017/    stuffthingmaps/val2017/     5,000 pairs
  (the pictures may lie in images/, the masks in annotations/)"""
LAYOUT_10K = """  images/NAME.jpg   annotations/NAME.mat
  imageLists/train.txt (9,000 names)   imageLists/test.txt (1,000 names)"""


class CocoStuff164k(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "coco_stuff_164k"


class CocoStuff10k(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "coco_stuff_10k"


def info(config_data: Any) -> DatasetInfo:
  """Names and colours; the authors give no colours, so these follow the PASCAL VOC rule."""
  return make_info(config_data.name, CLASSES, color_map(len(CLASSES)))


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`; of 164k one of the splits alone will do."""
  root, name = pairs.inside(config_data.manual_dir), config_data.name
  if name == "coco_stuff_10k":
    return pairs.original(
      CocoStuff10k,
      root,
      find=lambda: _find_10k(root),
      watch=("imageLists", "images", "annotations"),
      table=_table(name),
      read=read_mat,
      absent={"val": "the 9,000 train pictures of the release are followed by 1,000 of split 'test'"},
    )
  splits = {} if root is None else _folders(root)
  return pairs.original(
    CocoStuff164k,
    root,
    find=lambda: pairs.find_splits(root, splits, name=name, layout=LAYOUT_164K),
    watch=[folder for folders in splits.values() for folder in folders],
    table=_table(name),
    absent={"test": "the labels of the test pictures are not published; use val"},
  )


def _folders(root: epath.Path) -> dict[str, tuple[str, str]]:
  """Split → (pictures, masks), wherever `LAYOUT_164K` lets them be."""
  pictures = "images/" if (root / "images").exists() else ""
  known = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
  masks = next((name for name in known if (root / name).exists()), known[0])
  return {split: (f"{pictures}{split}2017", f"{masks}/{split}2017") for split in ("train", "val")}


def _find_10k(root: epath.Path) -> dict[str, list[pairs.Pair]]:
  lists = ("imageLists/train.txt", "imageLists/test.txt")
  pairs.require(root, ("images", "annotations", *lists), name="coco_stuff_10k", layout=LAYOUT_10K)
  return {
    split: pairs.list_pairs(
      root, "images", "annotations", stems=pairs.read_names(root / path), mask_end=".mat"
    )
    for split, path in zip(("train", "test"), lists, strict=True)
  }


def read_mat(pair: pairs.Pair) -> list[pairs.Example]:
  """The pair with its MATLAB mask as a PNG of the same ids.

  Raises:
    DataError: a file that MATLAB's format does not explain, or one without the map `S`.
  """
  return [pairs.Example(pair.id, files.read_bytes(pair.image), images.mat_mask(pair.mask, ("S",)))]


def _table(name: str) -> Int[np.ndarray, "65536"]:
  first, void = (1, 0) if name == "coco_stuff_10k" else (0, 255)
  rules = {void: IGNORE_LABEL} | {category - 1 + first: i for i, category in enumerate(CATEGORIES)}
  return images.label_table(rules, num_classes=len(CLASSES), where=name)
