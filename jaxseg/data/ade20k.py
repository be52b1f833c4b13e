"""ADE20K with 150 classes: the scene parsing benchmark, ADEChallengeData2016.

B. Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. Not the full ADE20K, and
not the 100-class instance task that TFDS calls `scene_parse150`. Masks hold 0 for what is
none of the 150 classes and 1 to 150 for these; training ids are one less.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from jaxseg.data import images, pairs, preparing
from jaxseg.data.source import DatasetInfo, make_info
from jaxseg.types import IGNORE_LABEL

# One name of each line of objectInfo150.txt, without the synonyms.
CLASSES = (
  "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass",
  "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair",
  "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair",
  "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box",
  "column", "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace",
  "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table", "pillow",
  "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
  "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair",
  "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier",
  "awning", "streetlight", "booth", "television receiver", "airplane", "dirt track", "apparel", "pole",
  "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship",
  "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel",
  "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
  "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket",
  "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen",
  "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
# As published with the benchmark (color150); "road" and "screen door" share a grey.
PALETTE = (
  (120, 120, 120), (180, 120, 120), (6, 230, 230), (80, 50, 50), (4, 200, 3), (120, 120, 80),
  (140, 140, 140), (204, 5, 255), (230, 230, 230), (4, 250, 7), (224, 5, 255), (235, 255, 7),
  (150, 5, 61), (120, 120, 70), (8, 255, 51), (255, 6, 82), (143, 255, 140), (204, 255, 4),
  (255, 51, 7), (204, 70, 3), (0, 102, 200), (61, 230, 250), (255, 6, 51), (11, 102, 255), (255, 7, 71),
  (255, 9, 224), (9, 7, 230), (220, 220, 220), (255, 9, 92), (112, 9, 255), (8, 255, 214),
  (7, 255, 224), (255, 184, 6), (10, 255, 71), (255, 41, 10), (7, 255, 255), (224, 255, 8),
  (102, 8, 255), (255, 61, 6), (255, 194, 7), (255, 122, 8), (0, 255, 20), (255, 8, 41), (255, 5, 153),
  (6, 51, 255), (235, 12, 255), (160, 150, 20), (0, 163, 255), (140, 140, 140), (250, 10, 15),
  (20, 255, 0), (31, 255, 0), (255, 31, 0), (255, 224, 0), (153, 255, 0), (0, 0, 255), (255, 71, 0),
  (0, 235, 255), (0, 173, 255), (31, 0, 255), (11, 200, 200), (255, 82, 0), (0, 255, 245), (0, 61, 255),
  (0, 255, 112), (0, 255, 133), (255, 0, 0), (255, 163, 0), (255, 102, 0), (194, 255, 0), (0, 143, 255),
  (51, 255, 0), (0, 82, 255), (0, 255, 41), (0, 255, 173), (10, 0, 255), (173, 255, 0), (0, 255, 153),
  (255, 92, 0), (255, 0, 255), (255, 0, 245), (255, 0, 102), (255, 173, 0), (255, 0, 20),
  (255, 184, 184), (0, 31, 255), (0, 255, 61), (0, 71, 255), (255, 0, 204), (0, 255, 194), (0, 255, 82),
  (0, 10, 255), (0, 112, 255), (51, 0, 255), (0, 194, 255), (0, 122, 255), (0, 255, 163), (255, 153, 0),
  (0, 255, 10), (255, 112, 0), (143, 255, 0), (82, 0, 255), (163, 255, 0), (255, 235, 0), (8, 184, 170),
  (133, 0, 255), (0, 255, 92), (184, 0, 255), (255, 0, 31), (0, 184, 255), (0, 214, 255), (255, 0, 112),
  (92, 255, 0), (0, 224, 255), (112, 224, 255), (70, 184, 160), (163, 0, 255), (153, 0, 255),
  (71, 255, 0), (255, 0, 163), (255, 204, 0), (255, 0, 143), (0, 255, 235), (133, 255, 0),
  (255, 0, 235), (245, 0, 255), (255, 0, 122), (255, 245, 0), (10, 190, 212), (214, 255, 0),
  (0, 204, 255), (20, 0, 255), (255, 255, 0), (0, 153, 255), (0, 41, 255), (0, 255, 204), (41, 0, 255),
  (41, 255, 0), (173, 0, 255), (0, 245, 255), (71, 0, 255), (122, 0, 255), (0, 255, 184), (0, 92, 255),
  (184, 255, 0), (0, 133, 255), (255, 214, 0), (25, 194, 194), (102, 255, 0), (92, 0, 255),
)  # fmt: skip
LABEL_MAP = {0: IGNORE_LABEL} | {raw: raw - 1 for raw in range(1, 151)}
SPLITS = {
  "train": ("images/training", "annotations/training"),
  "val": ("images/validation", "annotations/validation"),
}
LAYOUT = """  images/training/    annotations/training/     20,210 pairs NAME.jpg, NAME.png
  images/validation/  annotations/validation/   2,000 pairs
  (or the folder ADEChallengeData2016/ with these in it)"""


class ADE20K(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "ade20k"


def info(config_data: Any) -> DatasetInfo:
  """Names and colours; no setting changes them."""
  return make_info("ade20k", CLASSES, PALETTE)


def open_split(config_data: Any, split: str) -> preparing.RecordSource:
  """`split` is "train" or "val"; reads `manual_dir` and `data_dir`."""
  return preparing.open_split(original(config_data), split, data_dir=config_data.data_dir)


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`; one of the splits alone will do."""
  root = pairs.inside(config_data.manual_dir, "ADEChallengeData2016")
  return pairs.original(
    ADE20K,
    root,
    find=lambda: pairs.find_splits(root, SPLITS, name="ade20k", layout=LAYOUT),
    watch=[folder for folders in SPLITS.values() for folder in folders],
    table=_table(),
    absent={"test": "the labels of the test pictures are not published; use val"},
  )


def _table() -> Int[np.ndarray, "65536"]:
  return images.label_table(LABEL_MAP, num_classes=len(CLASSES), where="ade20k")
