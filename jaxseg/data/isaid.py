"""iSAID, aerial pictures cut into tiles of 896 that overlap by 384: 15 classes and background.

S. Waqas Zamir et al., "iSAID: A Large-scale Dataset for Instance Segmentation in Aerial Images",
CVPR workshops 2019 (https://arxiv.org/abs/1905.12886), on the pictures of DOTA. The tiles are
those of mmsegmentation's converter, which published numbers are measured on: one every 512
pixels, the last ones moved back inside; a picture smaller than a tile is filled up with black
and "no label". Here tiles are also filled up where just one side falls short of 896.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from jaxseg.data import files, images, pairs, preparing
from jaxseg.data.source import DatasetInfo, make_info
from jaxseg.types import IGNORE_LABEL

CLASSES = (
  "background", "ship", "storage tank", "baseball diamond", "tennis court", "basketball court",
  "ground track field", "bridge", "large vehicle", "small vehicle", "helicopter", "swimming pool",
  "roundabout", "soccer ball field", "plane", "harbor",
)  # fmt: skip
# The colours in which the masks are drawn.
PALETTE = (
  (0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63),
  (0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255),
  (0, 100, 155),
)  # fmt: skip
COLORS = {color: i for i, color in enumerate(PALETTE)}
LABEL_MAP = {i: i for i in range(16)} | {255: IGNORE_LABEL}
TILE = 896
OVERLAP = 384
MASK_END = "_instance_color_RGB.png"
LAYOUT = """  as distributed:  train/images/NAME.png  train/Semantic_masks/NAME_instance_color_RGB.png   1,411
                   val/images/            val/Semantic_masks/                             458
                   (both may be one folder deeper, as the archives unpack them)
  or as tiles:     img_dir/train/NAME_Y0_Y1_X0_X1.png   ann_dir/train/NAME_Y0_Y1_X0_X1_instance_color_RGB.png
                   img_dir/val/                         ann_dir/val/"""


class ISAID(pairs.PairBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "isaid"


def info(config_data: Any) -> DatasetInfo:
  """Names and colours; no setting changes them."""
  return make_info("isaid", CLASSES, PALETTE)


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`, whole pictures or tiles."""
  root = pairs.inside(config_data.manual_dir, "iSAID")
  tiled = root is not None and (root / "img_dir").exists()
  if tiled:
    splits = {split: (f"img_dir/{split}", f"ann_dir/{split}") for split in ("train", "val")}
  else:
    splits = {split: (f"{split}/images", f"{split}/Semantic_masks") for split in ("train", "val")}
  list_tiles = functools.partial(pairs.list_pairs, mask_end=MASK_END)
  return pairs.original(
    ISAID,
    root,
    find=lambda: pairs.find_splits(
      root, splits, name="isaid", layout=LAYOUT, listed=list_tiles if tiled else _list_pictures
    ),
    watch=[folder for folders in splits.values() for folder in folders],
    table=images.label_table(LABEL_MAP, num_classes=len(CLASSES), where="isaid"),
    read=read_tile if tiled else read_picture,
    absent={"test": "the labels of the test pictures are not published; use val"},
  )


def _list_pictures(root: epath.Path, image_dir: str, mask_dir: str) -> list[pairs.Pair]:
  def unpacked(folder: str) -> str:
    return f"{folder}/images" if (root / folder / "images").exists() else folder

  return pairs.list_pairs(root, unpacked(image_dir), unpacked(mask_dir), mask_end=MASK_END)


def read_tile(pair: pairs.Pair) -> list[pairs.Example]:
  """A tile as it is; a mask in colours becomes one of ids."""
  mask = images.index_mask(files.read_bytes(pair.mask), COLORS, path=pair.mask)
  return [pairs.Example(pair.id, files.read_bytes(pair.image), mask)]


def read_picture(pair: pairs.Pair) -> Iterator[pairs.Example]:
  """The tiles of a picture, named like those of mmsegmentation: NAME_top_bottom_left_right.

  Raises:
    DataError: a truncated file, a colour that is no class, sizes that differ.
  """
  image = np.asarray(images.load(files.read_bytes(pair.image), pair.image, "image").convert("RGB"))
  encoded = images.index_mask(files.read_bytes(pair.mask), COLORS, path=pair.mask)
  mask = images.decode_mask(encoded)
  images.check_sizes(image.shape[:2], mask.shape, image_path=pair.image, mask_path=pair.mask)
  below, right = (max(TILE - side, 0) for side in mask.shape)
  image = np.pad(image, ((0, below), (0, right), (0, 0)))
  mask = np.pad(mask, ((0, below), (0, right)), constant_values=IGNORE_LABEL)
  for left in tile_starts(image.shape[1]):
    for top in tile_starts(image.shape[0]):
      rows, columns = slice(top, top + TILE), slice(left, left + TILE)
      yield pairs.Example(
        f"{pair.id}_{top}_{top + TILE}_{left}_{left + TILE}",
        images.encode_image(np.ascontiguousarray(image[rows, columns])),
        images.encode_mask(np.ascontiguousarray(mask[rows, columns])),
      )


def tile_starts(side: int) -> list[int]:
  """Where tiles begin along a side of at least `TILE` pixels."""
  return sorted({min(start, side - TILE) for start in range(0, side, TILE - OVERLAP)})
