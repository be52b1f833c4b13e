"""Class names and colors of the data sets, by which images are read, weights told and results drawn.

Facts of the data sets, in their order of train ids; an underscore stands for a space.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

# Where a pixel may have several classes or none, its label is a whole number of which each class is a bit:
# 1, 2, 4, ... 64, then 256, 512, ... The bit 128 stands for none, so that 255 (no label) is never a set of
# classes. A mask has 16 bits.
MOST_AT_ONCE = 15
_LEFT_OUT = 7


class Classes(NamedTuple):
  """Names in train-id order, and (k, 3) uint8 RGB colors."""

  names: tuple[str, ...]
  palette: np.ndarray


_CITYSCAPES = """
  road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider
  car truck bus train motorcycle bicycle
"""
_CITYSCAPES_COLORS = """
  804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e
  000046 003c64 005064 0000e6 770b20
"""
# SegNet's 11 classes of CamVid, in the order of its label images.
_CAMVID = """
  sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist
"""
_CAMVID_COLORS = """
  808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0
"""
_VOC = """
  background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike
  person pottedplant sheep sofa train tvmonitor
"""
_ADE20K = """
  wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door
  table mountain plant curtain chair car water painting sofa shelf house sea mirror rug field armchair
  seat fence desk rock wardrobe lamp bathtub railing cushion base box column signboard chest_of_drawers
  counter sand sink skyscraper fireplace refrigerator grandstand path stairs runway case pool_table
  pillow screen_door stairway river bridge bookcase blind coffee_table toilet flower book hill bench
  countertop stove palm kitchen_island computer swivel_chair boat bar arcade_machine hovel bus towel
  light truck tower chandelier awning streetlight booth television_receiver airplane dirt_track apparel
  pole land bannister escalator ottoman bottle buffet poster stage van ship fountain conveyer_belt
  canopy washer plaything swimming_pool stool barrel basket waterfall tent bag minibike cradle oven ball
  food step tank trade_name microwave pot animal bicycle lake dishwasher screen blanket sculpture hood
  sconce vase traffic_light tray ashcan fan pier crt_screen plate monitor bulletin_board shower radiator
  glass clock flag
"""
_ADE20K_COLORS = """
  787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846
  08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc
  ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14
  ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff
  ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00
  008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014
  ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900
  00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
  5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff
  ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff
  4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

# Datasets that a class count alone suggests; `assumed` says so when it is used.
DATASETS = ("cityscapes", "camvid", "voc", "ade20k")
_BY_COUNT = {19: "cityscapes", 11: "camvid", 21: "voc", 150: "ade20k"}


def dataset(name: str) -> Classes:
  """Names and colours of one of `DATASETS`."""
  words, colors = {
    "cityscapes": (_CITYSCAPES, _CITYSCAPES_COLORS),
    "camvid": (_CAMVID, _CAMVID_COLORS),
    "voc": (_VOC, None),
    "ade20k": (_ADE20K, _ADE20K_COLORS),
  }[name]
  names = tuple(word.replace("_", " ") for word in words.split())
  if colors is None:
    return Classes(names, voc_colors(len(names)))
  rgb = np.frombuffer(bytes.fromhex("".join(colors.split())), np.uint8)
  return Classes(names, rgb.reshape(-1, 3).copy())


def by_count(num_classes: int | None) -> str | None:
  """The dataset with that many classes, or None."""
  return _BY_COUNT.get(num_classes)


def voc_colors(n: int) -> np.ndarray:
  """The PASCAL VOC colors of `n` classes, (n, 3) uint8: the bits of the id spread over R, G and B."""
  index = np.arange(n)
  colors = np.zeros((n, 3), np.uint8)
  for bit in range(8):
    for channel in range(3):
      colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
  return colors


def class_bits(num_classes: int) -> Integer[np.ndarray, "{num_classes}"]:
  """The bit of each class in a label of several classes, int32."""
  index = np.arange(num_classes)
  return (1 << (index + (index >= _LEFT_OUT))).astype(np.int32)


def members(label: Any, num_classes: int) -> Any:
  """Which classes a pixel has, *b k of bool, from labels of several classes, *b of NumPy or JAX.

  Of a pixel without a label (255) it says nothing.
  """
  return (label[..., None] & class_bits(num_classes).astype(label.dtype)) != 0


def as_label(chosen: Bool[np.ndarray, "*b k"]) -> Integer[np.ndarray, "*b"]:
  """The label of the classes that a pixel has: `members` turned round; uint8, beyond 7 classes uint16."""
  bits = class_bits(chosen.shape[-1])
  return (chosen * bits).sum(-1).astype(label_type(len(bits)))


def label_type(num_classes: int) -> Any:
  """The type that holds a label of that many classes at once."""
  return np.uint8 if num_classes <= _LEFT_OUT else np.uint16


def drawn_sets(names: Sequence[str], palette: np.ndarray) -> Classes:
  """A name and a colour for every label of several classes, for pictures: "a + b", in their mean colour."""
  codes = np.arange(int(class_bits(len(names)).sum()) + 1)
  chosen = members(codes, len(names))
  colors = chosen @ np.asarray(palette, np.float64) / np.maximum(chosen.sum(-1, keepdims=True), 1)
  texts = (" + ".join(name for name, has in zip(names, row, strict=True) if has) for row in chosen)
  return Classes(tuple(text or "none" for text in texts), np.round(colors).astype(np.uint8))
