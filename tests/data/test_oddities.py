"""A folder of oddities: each is read right to the pixel or named in one sentence; nothing ends the check."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import DataError, check_dataset, check_labels, folder, open_split
from jaxseg.data.folder import split_of
from tests.data import miniature, oddities


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  root = tmp_path_factory.mktemp("oddities")
  oddities.draw(root)
  return root


def _config(root: pathlib.Path, **changes):
  settings = dict(
    manual_dir=str(root),
    data_dir=str(root / "prepared"),
    classes=("ground", "tree", "car"),
    value_range=(0, 4095),
  )
  return miniature.settings("folder", **(settings | changes))


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("name", oddities.ODDITIES)
def test_read_right_or_named(drawn, name):
  oddity = oddities.ODDITIES[name]
  original = folder.original(_config(drawn))
  splits, survey, _ = original.survey()
  items = [item for members in splits.values() for item in members if item.id == name]
  if name == "without_mask":
    assert not items and any(name in p and oddity.sentence in p for p in survey.problems)
    return
  (item,) = items
  if oddity.sentence:
    with pytest.raises(DataError, match=oddity.sentence) as error:
      original.load(item)
    assert name in str(error.value) and "\n" not in str(error.value)
    return
  (record,) = original.load(item)
  example = original.decode(record | {"id": record["id"].encode()})
  np.testing.assert_array_equal(example["label"], oddity.label)
  assert example["image"].dtype == np.uint8 and example["image"].shape == (*oddities.SIZE, 3)
  if oddity.image is not None:
    np.testing.assert_array_equal(example["image"], oddity.image)


@pytest.mark.filterwarnings("ignore:Image size")
def test_the_check_reports_all_at_once(drawn):
  bad = {name for name, oddity in oddities.ODDITIES.items() if oddity.sentence}
  problems, read = [], 0
  for split in ("train", "val"):
    found = check_dataset(_config(drawn), split, samples=0)
    problems, read = problems + found.problems, read + found.read
  assert read == len(oddities.ODDITIES) - len(bad) >= 35
  for name in bad:
    assert any(name in problem and oddities.ODDITIES[name].sentence in problem for problem in problems), name
  for name, why in oddities.SKIPPED.items():
    assert any(name in line and why in line for line in found.skipped), name
  assert f"skipped: {len(found.skipped)}" in found.lines()


def test_deep_images_need_a_range(drawn):
  original = folder.original(_config(drawn, value_range=()))
  members = [item for members in original.survey()[0].values() for item in members]
  for name in ("grey16", "rgb16", "rgb16_tif", "float_tif"):
    (item,) = [item for item in members if item.id == name]
    with pytest.raises(
      DataError, match=rf"{name}.* values from 0 to .*; say which become 0 and 255 with data.val"
    ):
      original.load(item)
  with pytest.raises(DataError, match=r"data.value_range is \(9, 3\); expected \(low, high\)"):
    folder.original(_config(drawn, value_range=(9, 3)))


def _write(root, names, mask_names=None, mask=oddities.LABEL):
  for name, mask_name in zip(names, mask_names or names, strict=True):
    for path, array in ((root / "images" / name, oddities.IMAGE), (root / "masks" / mask_name, mask)):
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(array).save(path.with_name(path.name + ".png"))


COLORS = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 120, 9)}


def _colored(label):
  drawing = np.zeros((*label.shape, 3), np.uint8)
  for i, color in COLORS.items():
    drawing[label == i] = color
  return drawing


@pytest.mark.parametrize(
  ("file", "text"),
  [
    ("classes.txt", "ground 0 0 0\nold tree 255 0 0\ncar 0 120 9\n"),
    ("classes.txt", "ground, 0, 0, 0\nold tree,255,0,0\ncar,0,120,9\n\n"),
    ("labelmap.txt", "# label:color_rgb:parts:actions\nground:0,0,0::\nold tree:255,0,0::\ncar:0,120,9::\n"),
  ],
)
def test_masks_in_colours(tmp_path, file, text):
  label = np.where(oddities.LABEL == 255, 0, oddities.LABEL).astype(np.uint8)
  _write(tmp_path, ["train/a"], mask=_colored(label))
  Image.fromarray(_colored(label)).quantize(4).save(tmp_path / "masks/train/a.png")
  _write(tmp_path, ["train/b"], mask=np.dstack([_colored(label), np.full(label.shape, 255, np.uint8)]))
  (tmp_path / file).write_text(text)
  config = _config(tmp_path, classes=())
  config.classes = folder.class_names(config)
  assert config.classes == ("ground", "old tree", "car")
  source = open_split(config, "train")
  for i in range(2):
    np.testing.assert_array_equal(source[i]["label"], label)
  config.classes = ("car", "ground", "old tree")  # another order: colours go by name
  np.testing.assert_array_equal(open_split(config, "train")[0]["label"], np.array([1, 2, 0])[label])
  config.classes = ("car", "ground", "tree")
  with pytest.raises(
    DataError, match=r"data.classes is car, ground, tree, but classes.txt has ground, old tree, car"
  ):
    open_split(config, "train")


def test_a_colour_that_is_no_class(tmp_path):
  _write(tmp_path, ["train/a"], mask=_colored(oddities.LABEL) + np.uint8(1))
  (tmp_path / "classes.txt").write_text("ground 0 0 0\ntree 255 0 0\ncar 0 120 9\n")
  with pytest.raises(
    DataError, match=r"train/a.png has the colour \(1, 1, 1\) at row 0, column 0, which is no class"
  ):
    open_split(_config(tmp_path), "train")
  (tmp_path / "classes.txt").write_text("ground 0 0 0\ntree\ncar 0 120 9\n")
  with pytest.raises(DataError, match=r"classes.txt gives colours, but 'tree' has none"):
    open_split(_config(tmp_path), "train")


def test_mask_suffix(tmp_path):
  _write(tmp_path, ["train/a", "train/b"], ["train/a_mask", "train/b_mask"])
  with pytest.raises(
    DataError, match=r"set data.mask_suffix=_mask \(1 more problem; jaxseg check-dataset lists all"
  ):
    open_split(_config(tmp_path), "train")
  for suffix in ("_mask", "_mask.png"):
    assert len(open_split(_config(tmp_path, mask_suffix=suffix), "train")) == 2


def test_lists(tmp_path):
  _write(tmp_path, ["a b", "a", "c", "d"])
  (tmp_path / "train.txt").write_text("a b\nc.png\n")
  (tmp_path / "val.txt").write_text("images/d.png\n")
  (tmp_path / "notes.txt").write_text("a\n")
  source = open_split(_config(tmp_path), "train")
  assert [source[i]["id"] for i in range(2)] == ["a b", "c"]
  survey = folder.original(_config(tmp_path)).survey()
  assert sorted(survey[0]) == ["train", "val"] and any(
    "a.png (in no list)" in line for line in survey[1].skipped
  )
  (tmp_path / "val.txt").write_text("c\n")
  with pytest.raises(DataError, match=r"image 'c' is listed in .*val.txt and in .*train.txt, too"):
    open_split(_config(tmp_path), "val")
  (tmp_path / "train.txt").write_text("a b\na b.png\n")
  with pytest.raises(DataError, match=r"image 'a b.png' is listed in .*train.txt and twice in it"):
    open_split(_config(tmp_path), "train")
  (tmp_path / "train.txt").write_text("a x\n")
  with pytest.raises(DataError, match=r"image 'a x' is listed in .*train.txt but missing"):
    open_split(_config(tmp_path), "train")


@pytest.mark.parametrize(
  ("label_map", "sentence"),
  [
    ((0, 0), "label_map has 0; expected pairs"),
    (((0, 0), (0, 1)), "raw id 0 twice"),
    (((255, 0), (255, 1)), "raw id 255 twice"),
    (((0.5, 0),), r"has \(0.5, 0\); expected pairs \(raw id, train id\) of whole numbers"),
  ],
)
def test_label_maps_that_make_no_sense(tmp_path, label_map, sentence):
  _write(tmp_path, ["train/a"])
  with pytest.raises(DataError, match=sentence):
    open_split(_config(tmp_path, label_map=label_map), "train")


def test_warnings_before_training(tmp_path):
  names = [f"p{i}" for i in range(30)]
  train = [name for name in names if split_of(name) == "train"][:4]
  zeros = np.zeros(oddities.SIZE, np.uint8)
  objects = zeros.copy()
  objects[:18] = 255  # masks 0/255, whose object is ignored
  _write(tmp_path, train, mask=objects)
  config = _config(tmp_path, classes=("ground", "tree"))
  source, info = open_split(config, "train+val"), folder.info(config)
  text = " | ".join(check_labels(source, info))
  assert "75.0% of the pixels have no label" in text and "set data.label_map, such as ((0,0),(255,1))" in text
  assert (
    "1 of 2 classes never occur: tree" in text and "class 'ground' has 100.00% of the labelled pixels" in text
  )
  found = check_dataset(config, "train")
  assert any(line.startswith("warning: 75.0%") for line in found.lines())
  config.label_map = ((0, 255), (255, 255))
  with pytest.raises(DataError, match="no pixel has a label"):
    check_labels(open_split(config, "train"), info)
  config.label_map = ((0, 0), (255, 1))
  assert check_labels(open_split(config, "train"), info) == []
