"""The room's door: names, helpful errors, and a light import."""

import subprocess
import sys

import numpy as np
import pytest

from jaxseg import data
from tests.data import miniature


def test_unknown_dataset():
  with pytest.raises(ValueError, match="no dataset called 'camvit'; did you mean 'camvid'"):
    data.dataset_info(miniature.settings("camvit"))


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_dataset_describes_itself(name):
  info = data.dataset_info(miniature.settings(name, classes=("a", "b", "c", "d", "e", "f")))
  assert info.name == name
  assert info.num_classes == len(info.classes) == len(info.palette) >= 2
  assert info.palette.dtype == np.uint8
  shared = 1 if name == "ade20k" else 0  # as published, "road" and "screen door" have one grey
  assert len({tuple(color) for color in info.palette.tolist()}) == info.num_classes - shared


@pytest.mark.parametrize(
  ("name", "count", "anchors"),
  [
    (
      "ade20k",
      150,
      {0: ("wall", (120, 120, 120)), 12: ("person", (150, 5, 61)), 149: ("flag", (92, 0, 255))},
    ),
    (
      "cityscapes",
      19,
      {0: ("road", (128, 64, 128)), 13: ("car", (0, 0, 142)), 18: ("bicycle", (119, 11, 32))},
    ),
    ("coco_stuff_164k", 171, {0: ("person",), 79: ("toothbrush",), 80: ("banner",), 170: ("wood",)}),
    ("coco_stuff_10k", 171, {0: ("person",), 79: ("toothbrush",), 80: ("banner",), 170: ("wood",)}),
    (
      "voc",
      21,
      {0: ("background", (0, 0, 0)), 15: ("person", (192, 128, 128)), 20: ("tvmonitor", (0, 64, 128))},
    ),
    ("pascal_context_59", 59, {0: ("aeroplane",), 36: ("person",), 58: ("wood",)}),
    ("pascal_context_60", 60, {0: ("background", (0, 0, 0)), 37: ("person",), 59: ("wood",)}),
    (
      "isaid",
      16,
      {0: ("background", (0, 0, 0)), 14: ("plane", (0, 127, 255)), 15: ("harbor", (0, 100, 155))},
    ),
    ("imagenet", 1000, {}),
  ],
)
def test_classes_are_the_published_ones(name, count, anchors):
  info = data.dataset_info(miniature.settings(name))
  assert info.num_classes == count
  for i, anchor in anchors.items():
    assert (info.classes[i], tuple(info.palette[i].tolist()))[: len(anchor)] == anchor


def test_import_is_light():
  code = (
    "import sys, jaxseg.data;"
    "heavy = {'tensorflow_datasets', 'grain', 'cv2', 'PIL', 'tensorflow'} & set(sys.modules);"
    "assert not heavy, heavy"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve():
  for name in data.__all__:
    assert getattr(data, name) is not None
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    _ = data.nothing


def test_color_map_is_vocs():
  # From the VOC devkit: aeroplane, bicycle, bird, ..., tv monitor.
  colors = data.source.color_map(255)
  assert colors[[0, 1, 2, 3, 6, 7, 19]].tolist() == [
    [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 128, 128], [64, 0, 0], [0, 64, 128],
  ]  # fmt: skip
  assert len({tuple(c) for c in colors.tolist()}) == 255
