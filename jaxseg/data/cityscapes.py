"""Cityscapes, fine annotations: 19 classes out of the 34 ids of the labelIds masks.

M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016
(https://arxiv.org/abs/1604.01685). Ids and colours from the authors' label table. The masks
are the distributed *_labelIds.png; nothing has to be converted first.
"""

from typing import Any

from etils import epath

from jaxseg import classes
from jaxseg.data import files, images, pairs, preparing
from jaxseg.data.source import DatasetInfo, make_info
from jaxseg.types import IGNORE_LABEL

CLASSES, PALETTE = classes.dataset("cityscapes")
# The labelId of each class; the other ids up to 33 are void or too rare to be scored.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# 255 is what -1 (licence plate) becomes in eight bits.
LABEL_MAP = dict.fromkeys((*range(34), 255), IGNORE_LABEL) | {raw: i for i, raw in enumerate(LABEL_IDS)}
SPLITS = {split: (f"leftImg8bit/{split}", f"gtFine/{split}") for split in ("train", "val")}
LAYOUT = """  leftImg8bit/train/CITY/NAME_leftImg8bit.png   gtFine/train/CITY/NAME_gtFine_labelIds.png   2,975
  leftImg8bit/val/CITY/...                      gtFine/val/CITY/...                          500"""


class Cityscapes(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "cityscapes"


def info(config_data: Any) -> DatasetInfo:
  """Names and colours; no setting changes them."""
  return make_info("cityscapes", CLASSES, PALETTE)


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`; one of the splits alone will do."""
  root = pairs.inside(config_data.manual_dir)
  return pairs.original(
    Cityscapes,
    root,
    find=lambda: pairs.find_splits(root, SPLITS, name="cityscapes", layout=LAYOUT, listed=_cities),
    watch=[folder for folders in SPLITS.values() for folder in folders],
    table=images.label_table(LABEL_MAP, num_classes=len(CLASSES), where="cityscapes"),
    absent={"test": "the labels of the test pictures are not published; use val"},
  )


def _cities(root: epath.Path, image_dir: str, mask_dir: str) -> list[pairs.Pair]:
  found = []
  for city in files.folders(root / image_dir):
    pairs.require(root, [f"{mask_dir}/{city}"], name="cityscapes", layout=LAYOUT)
    found += pairs.list_pairs(
      root,
      f"{image_dir}/{city}",
      f"{mask_dir}/{city}",
      image_end="_leftImg8bit",
      mask_end="_gtFine_labelIds.png",
    )
  return found
