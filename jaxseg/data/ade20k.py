"""ADE20K with 150 classes: the scene parsing benchmark, ADEChallengeData2016.

B. Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. Not the full ADE20K, and
not the 100-class instance task that TFDS calls `scene_parse150`. Masks hold 0 for what is
none of the 150 classes and 1 to 150 for these; training ids are one less.
"""

from typing import Any

from jaxseg import classes
from jaxseg.data import images, pairs, preparing
from jaxseg.data.source import DatasetInfo, make_info
from jaxseg.types import IGNORE_LABEL

# "road" and "screen door" share a grey, as published with the benchmark (color150).
CLASSES, PALETTE = classes.dataset("ade20k")
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


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`; one of the splits alone will do."""
  root = pairs.inside(config_data.manual_dir, "ADEChallengeData2016")
  return pairs.original(
    ADE20K,
    root,
    find=lambda: pairs.find_splits(root, SPLITS, name="ade20k", layout=LAYOUT),
    watch=[folder for folders in SPLITS.values() for folder in folders],
    table=images.label_table(LABEL_MAP, num_classes=len(CLASSES), where="ade20k"),
    absent={"test": "the labels of the test pictures are not published; use val"},
  )
