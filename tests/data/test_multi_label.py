"""Masks of several classes a pixel: a file for each class, or a bit for each, and what is said of them."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxseg import data
from jaxseg.classes import members
from jaxseg.data import DataError, dataset_info, open_split
from tests.data import miniature


@pytest.fixture
def config(tmp_path):
  root = tmp_path / "mine"
  for kind in ("images", "masks"):
    (root / kind).mkdir(parents=True)
  return miniature.settings(
    "folder",
    manual_dir=str(root),
    data_dir=str(tmp_path / "prepared"),
    classes=("polyp", "tool tip"),
    multi_label=True,
  )


def write(config, name, **masks):
  root = pathlib.Path(config.manual_dir)
  Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(root / "images" / f"{name}.png")
  for end, mask in masks.items():
    Image.fromarray(mask).save(root / "masks" / f"{name}{end}.png")


def draw(seed, values=(0, 255)):
  return np.random.default_rng(seed).choice(np.uint8(values), (40, 48))


def test_a_mask_for_each_class(config, capsys):
  a, b = draw(0), draw(1)
  write(config, "both", _polyp=a, _tool_tip=b)
  write(config, "one", _polyp=b)
  (pathlib.Path(config.manual_dir) / "train.txt").write_text("both\none\n")
  source = open_split(config, "train")
  np.testing.assert_array_equal(members(source[0]["label"], 2), np.stack([a > 0, b > 0], -1))
  np.testing.assert_array_equal(members(source[1]["label"], 2), np.stack([b > 0, b < 0], -1))
  assert (
    "images that are taken to show no such class: 1 without a mask of tool tip" in capsys.readouterr().out
  )
  batch = next(data.train_batches(config, batch_size=2, seed=0, start_step=0))
  assert set(np.unique(batch["label"])) <= {0, 1, 2, 3, 255}
  found = data.check_dataset(config, "train")
  assert found.pixels.tolist() == [(a > 0).sum() + (b > 0).sum(), (b > 0).sum()]
  assert found.labelled == 2 * 40 * 48 and not found.warnings()


def test_bits_and_what_is_refused(config):
  write(config, "sets", **{"": draw(0, (0, 1, 2, 3, 255))})
  (pathlib.Path(config.manual_dir) / "train.txt").write_text("sets\n")
  np.testing.assert_array_equal(open_split(config, "train")[0]["label"], draw(0, (0, 1, 2, 3, 255)))
  write(config, "sets", **{"": draw(0, (0, 4))})
  with pytest.raises(DataError, match="has id 4, which is no class; known ids: 0-3, 255"):
    open_split(config, "train")
  (pathlib.Path(config.manual_dir) / "masks" / "sets.png").unlink()
  write(config, "sets", _polyp=draw(0), _tool_tip=draw(0)[1:])
  with pytest.raises(DataError, match="masks of one image must be equal in size"):
    open_split(config, "train")
  config.label_map = ((0, 0), (255, 4))
  with pytest.raises(DataError, match="label_map sends raw id 255 to 4; expected 0 to 3"):
    open_split(config, "train")


def test_sixteen_bits_hold_fifteen_classes(config):
  config.classes = tuple(f"c{i}" for i in range(15))
  write(config, "many", _c0=draw(0), _c14=draw(1))
  (pathlib.Path(config.manual_dir) / "train.txt").write_text("many\n")
  label = open_split(config, "train")[0]["label"]
  assert label.dtype == np.uint16
  np.testing.assert_array_equal(
    members(label, 15)[..., [0, 7, 14]], np.stack([draw(0), 0 * draw(0), draw(1)], -1) > 0
  )
  config.classes += ("c15",)
  with pytest.raises(
    DataError, match=r"data.classes has 16 names; with data.multi_label a mask holds at most 15"
  ):
    dataset_info(config)
