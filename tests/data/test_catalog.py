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
  assert len({tuple(color) for color in info.palette.tolist()}) == info.num_classes


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
