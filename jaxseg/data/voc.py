"""PASCAL VOC 2012 segmentation, with the additional masks of SBD: 20 classes and background.

M. Everingham et al., "The PASCAL Visual Object Classes Challenge 2012"; the extra masks:
B. Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011 (SBD). A palette
PNG is read by its index, never by its colour; a mask in RGB by VOC's colours. 255, the
border drawn around every object, is no label.
"""

import dataclasses
import os
from typing import Any

from etils import epath

from jaxseg import classes
from jaxseg.data import files, images, pairs, preparing
from jaxseg.data.source import DataError, DatasetInfo, make_info
from jaxseg.types import IGNORE_LABEL

CLASSES, PALETTE = classes.dataset("voc")
BORDER = (224, 224, 192)  # entry 255 of the palette
COLORS = {tuple(color): i for i, color in enumerate(PALETTE.tolist())} | {BORDER: IGNORE_LABEL}
LABEL_MAP = {i: i for i in range(21)} | {255: IGNORE_LABEL}
LISTS = "ImageSets/Segmentation"
LAYOUT = """  JPEGImages/NAME.jpg   SegmentationClass/NAME.png
  ImageSets/Segmentation/train.txt val.txt trainval.txt   1,464 + 1,449 = 2,913 names
  (this folder, the one it is in, or the one that has VOCdevkit/VOC2012/)
  for train_aug, 10,582 names, one of
    SegmentationClassAug/NAME.png, with ImageSets/Segmentation/trainaug.txt or without
    SBD beside it: benchmark_RELEASE/dataset/ (VOCaug/dataset/, SBD/) with cls/NAME.mat train.txt val.txt"""
_SBD = tuple(
  f"{outer}{inner}"
  for outer in ("", "SBD/", "sbd/")
  for inner in ("benchmark_RELEASE/dataset", "VOCaug/dataset", "dataset", "")
)


class VOC(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "voc"


def info(config_data: Any) -> DatasetInfo:
  """Names and colours; no setting changes them."""
  return make_info("voc", CLASSES, PALETTE)


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`.

  Without any list in ImageSets/Segmentation nobody can tell train from val; every
  picture that has a mask is in "trainval" then.
  """
  root = pairs.inside(config_data.manual_dir, "VOCdevkit", "VOC2012")
  sbd = None if root is None else _find_sbd(epath.Path(config_data.manual_dir).expanduser(), root)
  extra = [] if sbd is None else [os.fspath(sbd / part) for part in ("cls", "train.txt", "val.txt")]
  made = pairs.original(
    VOC,
    root,
    find=lambda: _find(root, sbd),
    watch=(LISTS, "JPEGImages", "SegmentationClass", "SegmentationClassAug"),
    table=images.label_table(LABEL_MAP, num_classes=len(CLASSES), where="voc"),
    read=read,
    absent=_absent(root, sbd),
  )
  # SBD lies beside the root: its paths are not below it.
  return dataclasses.replace(made, watch=(*made.watch, *extra))


def read(pair: pairs.Pair) -> list[pairs.Example]:
  """The pair, its mask as a PNG of ids where it is an SBD file or drawn in colours."""
  if pair.mask.endswith(".mat"):
    mask = images.mat_mask(pair.mask, ("GTcls", "Segmentation"))
  else:
    mask = images.index_mask(files.read_bytes(pair.mask), COLORS, path=pair.mask)
  return [pairs.Example(pair.id, files.read_bytes(pair.image), mask)]


def _absent(root: epath.Path | None, sbd: epath.Path | None) -> dict[str, str]:
  """Split → why it cannot be had from this folder."""
  absent = {"test": "the labels of the test pictures are not published; use val"}
  if root is None or not (root / "SegmentationClass").exists():
    return absent  # another folder, which is said when it is searched
  if not _has_lists(root):
    for split in ("train", "val", "train_aug"):
      absent[split] = f"{root / LISTS} has no lists; without them every pair is in split 'trainval'"
  elif sbd is None and not (root / "SegmentationClassAug").exists():
    absent["train_aug"] = f"neither SegmentationClassAug nor SBD is in or beside {root}"
  return absent


def _has_lists(root: epath.Path) -> bool:
  return any((root / LISTS / f"{split}.txt").exists() for split in ("train", "val", "trainval"))


def _find_sbd(manual_dir: epath.Path, root: epath.Path) -> epath.Path | None:
  """The folder of SBD that has cls/, beside VOC or around it."""
  around = (manual_dir, root, root.parent, root.parent.parent)
  candidates = (base / folder for base in around for folder in _SBD)
  return next((path for path in candidates if (path / "cls").exists()), None)


def _find(root: epath.Path, sbd: epath.Path | None) -> dict[str, list[pairs.Pair]]:
  pairs.require(root, ("JPEGImages", "SegmentationClass"), name="voc", layout=LAYOUT)
  masks = _masks(root, sbd)
  lists = {split: root / LISTS / f"{split}.txt" for split in ("train", "val", "trainval")}
  if not _has_lists(root):
    names = files.names(os.fspath(root / "SegmentationClass"))
    stems = [name.removesuffix(".png") for name in names if name.endswith(".png")]
    return {"trainval": _pairs(root, stems, masks)}
  pairs.require(root, [f"{LISTS}/train.txt", f"{LISTS}/val.txt"], name="voc", layout=LAYOUT)
  names = {split: pairs.read_names(path) for split, path in lists.items() if path.exists()}
  augmented = _augmented(root, sbd, names)
  if augmented:
    names["train_aug"] = augmented
  return {split: _pairs(root, stems, masks) for split, stems in names.items()}


def _masks(root: epath.Path, sbd: epath.Path | None) -> dict[str, str]:
  """Name → mask; VOC's own before the converted SBD, that before the MATLAB files."""
  folders = [(root / "SegmentationClass", ".png"), (root / "SegmentationClassAug", ".png")]
  if sbd is not None:
    folders.append((sbd / "cls", ".mat"))
  found: dict[str, str] = {}
  for folder, suffix in reversed(folders):
    if folder.exists():
      path = os.fspath(folder)
      found |= {n.removesuffix(suffix): f"{path}/{n}" for n in files.names(path) if n.endswith(suffix)}
  return found


def _augmented(root: epath.Path, sbd: epath.Path | None, names: dict[str, list[str]]) -> list[str]:
  """VOC's train and everything of SBD that is not in VOC's val."""
  for name in ("trainaug.txt", "train_aug.txt"):
    if (root / LISTS / name).exists():
      # Some of these lists hold "/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png".
      listed = pairs.read_names(root / LISTS / name)
      return [os.path.splitext(os.path.basename(entry))[0] for entry in listed]
  if sbd is not None:
    pairs.require(sbd, ("train.txt", "val.txt"), name="voc (SBD)", layout=LAYOUT)
    more = pairs.read_names(sbd / "train.txt") + pairs.read_names(sbd / "val.txt")
  elif (root / "SegmentationClassAug").exists():
    more = [n.removesuffix(".png") for n in files.names(os.fspath(root / "SegmentationClassAug"))]
  else:
    return []
  return sorted({*names["train"], *more} - set(names["val"]))


def _pairs(root: epath.Path, stems: list[str], masks: dict[str, str]) -> list[pairs.Pair]:
  pictures = set(files.names(os.fspath(root / "JPEGImages")))
  found = []
  for stem in stems:
    image = os.fspath(root / "JPEGImages" / f"{stem}.jpg")
    if f"{stem}.jpg" not in pictures:
      raise DataError(f"image {image} is listed but missing")
    if stem not in masks:
      where = os.fspath(root / "SegmentationClass" / f"{stem}.png")
      raise DataError(f"mask {where} of image {image} is missing")
    found.append(pairs.Pair(stem, image, masks[stem]))
  return found
