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


def write_channels(config, name, chosen, suffix, high):
  """A mask of a channel for each class, h w k of bool."""
  write(config, name)
  mask = chosen if high == "bool" else (chosen * int(high)).astype(np.uint8)
  path = pathlib.Path(config.manual_dir) / "masks" / f"{name}.{suffix}"
  if suffix == "npy":
    np.save(path, mask)
  elif suffix == "tif":
    tifffile = pytest.importorskip("tifffile", reason="tifffile writes TIFF of many bands")
    tifffile.imwrite(path, mask.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
  else:
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize(
  "suffix, count, high",
  [
    ("png", 2, 255),
    ("png", 3, 1),
    ("png", 4, 255),
    ("bmp", 3, 255),
    ("tif", 3, 255),
    ("tif", 9, 1),
    ("npy", 2, 255),
    ("npy", 9, 1),
    ("npy", 3, "bool"),
  ],
)
def test_a_channel_for_each_class(config, suffix, count, high):
  config.classes = tuple(f"c{i}" for i in range(count))
  chosen = np.random.default_rng(count).random((40, 48, count)) < 0.4
  write_channels(config, "mask", chosen, suffix, high)
  write_channels(config, "none", chosen & False, suffix, 1)
  (pathlib.Path(config.manual_dir) / "train.txt").write_text("mask\nnone\n")
  source = open_split(config, "train")
  np.testing.assert_array_equal(members(source[0]["label"], count), chosen)
  assert not source[1]["label"].any()
  found = data.check_dataset(config, "train")
  assert not found.problems and found.pixels.tolist() == chosen.sum((0, 1)).tolist()
  assert found.labelled == 2 * 40 * 48


def test_channels_that_are_refused(config):
  config.classes = ("a", "b", "c")
  folder = pathlib.Path(config.manual_dir)
  (folder / "train.txt").write_text("mask\n")
  chosen = np.random.default_rng(0).random((40, 48, 3)) < 0.4

  def said(mask, suffix="npy"):
    for old in (folder / "masks").iterdir():
      old.unlink()
    write_channels(config, "mask", mask, suffix, 1)
    (problem,) = data.check_dataset(config, "train").problems
    with pytest.raises(DataError) as error:
      open_split(config, "train")
    assert str(error.value) == problem
    return problem

  sentence = "has 4 channels, but data.classes 3 names; expected a channel for each"
  four = np.concatenate([chosen, chosen], -1)[..., :4]
  assert sentence in said(four) and sentence in said(four, "tif")
  assert "holds 0, 7 in its 3 channels; expected 0 and 1, or 0 and 255" in said(chosen * 7)
  assert "holds 0, 1, 255 in its 3 channels" in said(chosen * np.array([1, 1, 255]), "png")
  # Grey that was saved as RGB holds the classes' bits, where its values say so.
  equal = np.repeat(chosen[..., :1], 3, -1)
  for high in (1, 255):
    assert "(RGB) may be one number a pixel or a channel for each of 3 classes" in said(equal * high, "png")
  for old in (folder / "masks").iterdir():
    old.unlink()
  write_channels(config, "mask", equal * 6, "png", 1)
  np.testing.assert_array_equal(open_split(config, "train")[0]["label"], equal[..., 0] * 6)
  config.classes = ("a", "b")
  grey_and_full = np.stack([chosen[..., 0] * 255, np.full((40, 48), 255)], -1)
  assert "(LA) may be one number a pixel" in said(grey_and_full, "png")


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
