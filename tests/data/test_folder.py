"""Anybody's folder: three ways to split, masks of several kinds, and a label map that is explicit."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import DataError, dataset_info, open_split
from jaxseg.data.folder import split_of
from tests.data import miniature


@pytest.fixture
def config(tmp_path):
  return miniature.settings(
    "folder",
    manual_dir=str(tmp_path / "mine"),
    data_dir=str(tmp_path / "prepared"),
    classes=("ground", "tree", "car"),
  )


def _write(root: pathlib.Path, names, split=""):
  return {
    name: miniature.write_pair(
      root / "images" / split / f"{name}.jpg",
      root / "masks" / split / f"{name}.png",
      seed=i,
      ids=(0, 1, 2, 255),
    )
    for i, name in enumerate(names)
  }


def _ids(source):
  return [source[i]["id"] for i in range(len(source))]


def test_split_folders(config):
  root = pathlib.Path(config.manual_dir)
  _write(root, ["a", "b"], "train")
  truth = _write(root, ["c"], "holdout")
  assert _ids(open_split(config, "train")) == ["a", "b"]
  example = open_split(config, "holdout")[0]
  np.testing.assert_array_equal(example["label"], truth["c"][1])
  with pytest.raises(DataError, match="folder has no split 'val'; it has holdout, train"):
    open_split(config, "val")


def test_split_lists(config):
  root = pathlib.Path(config.manual_dir)
  _write(root, ["a", "b", "c.d"])
  (root / "train.txt").write_text("c.d\nimages/a.jpg\n\n")
  (root / "val.txt").write_text("b.jpg\n")
  assert _ids(open_split(config, "train")) == ["c.d", "a"]
  assert _ids(open_split(config, "val")) == ["b"]
  (root / "val.txt").write_text("\n")
  with pytest.raises(DataError, match="split 'val' is empty"):
    open_split(config, "train")


def test_split_by_name_alone(config):
  names = [f"{i:03d}" for i in range(1000)]
  share = sum(split_of(name) == "val" for name in names) / len(names)
  assert 0.08 < share < 0.12
  few = [*[n for n in names if split_of(n) == "val"][:2], *[n for n in names if split_of(n) == "train"][:3]]
  _write(pathlib.Path(config.manual_dir), few)
  assert _ids(open_split(config, "val")) == sorted(few[:2])
  assert _ids(open_split(config, "train")) == sorted(few[2:])


def test_a_handful_of_pictures_still_has_a_val_split(config):
  names = [n for n in map("p{}".format, range(20)) if split_of(n) == "train"][:5]
  _write(pathlib.Path(config.manual_dir), names)
  val = _ids(open_split(config, "val"))
  assert len(val) == 1 and sorted(val + _ids(open_split(config, "train"))) == sorted(names)


def test_label_map_and_mask_kinds(config):
  root = pathlib.Path(config.manual_dir)
  raw = np.array([[0, 7, 300], [300, 7, 9]])
  config.label_map = ((0, 2), (7, 0), (300, 1), (9, 255))
  truth = [[2, 0, 1], [1, 0, 255]]
  _write(root, ["a", "b", "c"], "train")
  for name in "abc":
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(root / "images/train" / f"{name}.jpg")
  Image.fromarray(raw.astype(np.uint16)).save(root / "masks/train/a.png")
  indexed = Image.new("P", (3, 2))
  indexed.putdata([0, 7, 0, 0, 7, 9])
  indexed.putpalette([255 - v for v in range(256) for _ in range(3)])  # colours that are not the ids
  indexed.save(root / "masks/train/b.png")
  Image.fromarray(raw == 0).save(root / "masks/train/c.png")  # one bit a pixel
  with pytest.raises(
    DataError, match=r"masks/train/c.png has id 1, which is no class; known ids: 0, 7, 9, 255, 300"
  ):
    open_split(config, "train")
  config.label_map += ((1, 0),)
  source = open_split(config, "train")
  assert source[0]["label"].tolist() == truth
  assert source[1]["label"].tolist() == [[2, 0, 2], [2, 0, 255]]
  assert source[2]["label"].tolist() == [[0, 2, 2], [2, 2, 2]]


def test_another_label_map_is_another_preparation(config):
  _write(pathlib.Path(config.manual_dir), ["a"], "train")
  first = open_split(config, "train")[0]["label"]
  config.label_map = ((0, 1), (1, 0), (2, 2))
  swapped = open_split(config, "train")[0]["label"]
  np.testing.assert_array_equal(swapped, np.array([1, 0, 2] + 253 * [255])[first])


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"manual_dir": ""}, "data.manual_dir is empty; set it to a folder with"),
    ({"label_map": ((0, 3),)}, "sends raw id 0 to 3; expected 0 to 2, or 255"),
    ({"label_map": ((70000, 0),)}, "raw id 70000; a mask holds ids 0 to 65535"),
    ({"label_map": ((0, 1, 2),)}, r"label_map has \(0, 1, 2\); expected pairs"),
    ({"classes": ()}, "0 classes; give 1 to 255 names"),
    ({"classes": ("a", "b", "a")}, "class name 'a' occurs twice"),
  ],
)
def test_settings_that_do_not_fit(config, change, sentence):
  _write(pathlib.Path(config.manual_dir), ["a"], "train")
  vars(config).update(change)
  with pytest.raises(DataError, match=sentence):
    open_split(config, "train")


def test_wrong_folder_prints_the_layout(config):
  (pathlib.Path(config.manual_dir) / "images" / "train").mkdir(parents=True)
  with pytest.raises(
    DataError, match=r"mine/masks does not exist; data.manual_dir must be a folder with\n  images/"
  ):
    open_split(config, "train")
  (pathlib.Path(config.manual_dir) / "masks").mkdir()
  with pytest.raises(DataError, match=r"masks/train does not exist"):
    open_split(config, "train")


def test_info(config):
  info = dataset_info(config)
  assert info.classes == ("ground", "tree", "car")
  # The VOC colours of classes 1 to 3.
  assert info.palette.tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
