"""The other layouts that people have: lists or none, MATLAB and JSON masks, colours, tiles; real pairs."""

import pathlib

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jaxseg.data import DataError, dataset_info, isaid, open_split, pairs, pascal_context, voc
from tests.data import miniature, official
from tests.data.test_builders import assert_equal


@pytest.fixture
def source(tmp_path):
  return tmp_path / "source"


@pytest.fixture
def settings(tmp_path, source):
  return lambda name: miniature.settings(name, manual_dir=str(source), data_dir=str(tmp_path / "prepared"))


def _ids(split) -> list[str]:
  return [split[i]["id"] for i in range(len(split))]


def test_voc_with_sbd(settings, source):
  own = official.voc_devkit(source)
  # One picture of VOC's val and one of its train are in SBD too.
  more = official.sbd(source, {"train": ["2008_000001", "2007_000033"], "val": ["2008_000002"]})
  names = [name for name, _, _ in own["train"]] + ["2008_000001", "2008_000002"]
  augmented = open_split(settings("voc"), "train_aug")
  assert _ids(augmented) == sorted(names)
  rewritten = [e for e in more["all"] if e[0] != "2007_000033"]
  assert_equal(augmented, sorted(own["train"] + rewritten, key=lambda example: example[0]))
  # The release's own masks, with their border, come before those of SBD.
  assert 255 in open_split(settings("voc"), "val")[0]["label"]


def test_voc_with_converted_sbd(settings, source):
  own = official.voc_devkit(source)
  inner = source / "VOCdevkit/VOC2012"
  more = official.voc_pairs(
    inner, {"aug": ["2008_000001"]}, folder="SegmentationClassAug", put=official.grey
  )["aug"]
  val = own["val"][0][0]
  official.grey(inner / f"SegmentationClassAug/{val}.png", np.zeros(official.SIZE))
  assert _ids(open_split(settings("voc"), "train_aug")) == ["2007_000032", "2007_000039", "2008_000001"]
  # The list decides where there is one; some name the files and not the pictures.
  lines = [
    "/JPEGImages/2008_000001.jpg /SegmentationClassAug/2008_000001.png",
    "/JPEGImages/2007_000039.jpg x",
  ]
  official.names_file(inner / "ImageSets/Segmentation/trainaug.txt", lines)
  assert_equal(open_split(settings("voc"), "train_aug"), [more[0], own["train"][1]])


def test_voc_in_colours_and_without_lists(settings, source):
  truth = official.voc_colors(source)
  assert_equal(open_split(settings("voc"), "trainval"), truth["trainval"])
  with pytest.raises(DataError, match=r"no split 'val': .*Segmentation has no lists; .*in split 'trainval'"):
    open_split(settings("voc"), "val")


def test_voc_train_aug_needs_sbd(settings, source):
  official.voc_devkit(source)
  with pytest.raises(DataError, match="no split 'train_aug': neither SegmentationClassAug nor SBD is in"):
    open_split(settings("voc"), "train_aug")


def test_context_of_59_and_60_share_a_copy(settings, source, tmp_path):
  truth = official.pascal_context_png(source)
  without, background = (open_split(settings(f"pascal_context_{k}"), "train") for k in (59, 60))
  assert_equal(without, truth["train"])
  for i, (_, _, label) in enumerate(truth["train"]):
    np.testing.assert_array_equal(background[i]["label"], np.where(label == 255, 0, label + 1))
  assert len(list((tmp_path / "prepared").iterdir())) == 1


def test_context_from_json(settings, source):
  truth = official.pascal_context_json(source)
  for split, examples in truth.items():
    assert_equal(open_split(settings("pascal_context_59"), split), examples)
  text = (source / "trainval_merged.json").read_text()
  for wrong, sentence in (
    (
      text.replace('"category_id": 458', '"category_id": 1'),
      "mask 2008_00000. .* has id 1, which is no class",
    ),
    (text[: len(text) // 2], "trainval_merged.json is truncated or another file"),
    (text.replace(f'"size": [{official.SIZE[0]}', '"size": [7'), "mask 2008_00000. in .* is damaged"),
  ):
    (source / "trainval_merged.json").write_text(wrong)
    with pytest.raises(DataError, match=sentence):
      open_split(settings("pascal_context_59"), "train")


def test_run_lengths():
  # Columns first, zeros first; "0" is 48: 3 zeros, 2 ones, 1 zero.
  expected = np.array([[0, 1], [0, 1], [0, 0]])
  np.testing.assert_array_equal(pascal_context.decode_runs([3, 2, 1], (3, 2)), expected)
  np.testing.assert_array_equal(pascal_context.decode_runs("321", (3, 2)), expected)
  mask = (np.random.default_rng(0).random((60, 50)) < 0.1).astype(np.uint8)
  mask[:, 10:40] = 1  # a run of more than five bits, differences of both signs
  np.testing.assert_array_equal(pascal_context.decode_runs(official.runs(mask), (60, 50)), mask)
  with pytest.raises(ValueError, match="run lengths of 5 pixels for 3x2"):
    pascal_context.decode_runs([3, 2], (3, 2))


def test_isaid_tiles_and_small_pictures(settings, source, tmp_path):
  truth = official.isaid_tiles(source)
  assert_equal(open_split(settings("isaid"), "train"), truth["train"])
  small = miniature.settings("isaid", manual_dir=str(tmp_path / "small"), data_dir=str(tmp_path / "prepared"))
  whole = official.isaid_pictures(tmp_path / "small", shapes=((500, 896), (700, 600)))
  for split in ("train", "val"):
    (name, shown, label), (tile,) = whole[split][0], list(_all(open_split(small, split)))
    h, w = label.shape
    assert tile["id"] == f"{name}_0_896_0_896" and tile["label"].shape == (896, 896)
    np.testing.assert_array_equal(tile["image"][:h, :w], shown)
    np.testing.assert_array_equal(tile["label"][:h, :w], label)
    assert not tile["image"][h:].any() and (tile["label"][h:] == 255).all()
    assert not tile["image"][:, w:].any() and (tile["label"][:, w:] == 255).all()


def _all(split):
  return (split[i] for i in range(len(split)))


def test_tile_starts():
  # mmsegmentation's converter: every 512 pixels, the last ones moved back to end at the border.
  assert isaid.tile_starts(896) == [0]
  assert isaid.tile_starts(1000) == [0, 104]
  assert isaid.tile_starts(1920) == [0, 512, 1024]
  assert isaid.tile_starts(2000) == [0, 512, 1024, 1104]


def test_coco_in_subfolders(settings, source):
  truth = official.coco_stuff_164k(source)
  for split in ("train2017", "val2017"):
    (source / "images").mkdir(exist_ok=True)
    (source / split).rename(source / "images" / split)
  (source / "stuffthingmaps").rename(source / "annotations")
  assert_equal(open_split(settings("coco_stuff_164k"), "val"), truth["val"])


def test_one_split_alone(settings, source):
  truth = official.ade20k(source)
  for kind in ("images", "annotations"):
    (source / "ADEChallengeData2016" / kind / "training").rename(source / kind)
  assert_equal(open_split(settings("ade20k"), "val"), truth["val"])
  with pytest.raises(DataError, match="ade20k has no split 'train'; it has val"):
    open_split(settings("ade20k"), "train")


REAL = {
  # Raw id → class, one that the pictures have, beside the void.
  "ade20k": ("ade20k/ADEChallengeData2016", "val", "annotations/validation", {0: 255, 1: 0, 2: 1, 81: 80}),
  "voc": ("voc", "trainval", "SegmentationClass", {0: 0, 6: 6, 15: 15, 255: 255}),
  "coco_stuff_164k": ("cocostuff", "train", "stuffthingmaps/train2017", {0: 0, 16: 15, 156: 145, 255: 255}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_pairs(shared, tmp_path, name):
  folder, split, masks, rule = REAL[name]
  root = shared / "data" / folder
  real = open_split(miniature.settings(name, manual_dir=str(root), data_dir=str(tmp_path)), split)
  paths = sorted((root / masks).glob("*.png"))
  assert _ids(real) == [path.stem for path in paths]
  seen = set()
  for path, example in zip(paths, _all(real), strict=True):
    (picture,) = root.glob(f"**/{path.stem}.jpg")
    np.testing.assert_array_equal(example["image"], np.asarray(Image.open(picture).convert("RGB")))
    raw = np.asarray(Image.open(path))
    for value, label in rule.items():
      assert (example["label"][raw == value] == label).all()
      seen |= {value} if (raw == value).any() else set()
    assert len(np.unique(example["label"])) == len(np.unique(raw)), "no two ids become one class"
  assert seen == set(rule)
  assert dataset_info(miniature.settings(name)).num_classes > max(rule.values(), key=lambda v: v % 255)


def test_paths_and_lists_as_people_write_them(tmp_path):
  (tmp_path / "list.txt").write_bytes(b"a\r\nb c\r\n\r\n")
  assert pairs.read_names(epath.Path(tmp_path) / "list.txt") == ["a", "b"]
  assert pairs.inside("") is None and pairs.inside("~/x") == epath.Path(pathlib.Path.home() / "x")


def test_a_relative_folder_is_watched_as_well(source, monkeypatch):
  official.voc_devkit(source)
  official.sbd(source, {"train": ["2008_000001"], "val": ["2008_000002"]})
  monkeypatch.chdir(source)
  watched = voc.original(miniature.settings("voc", manual_dir=".")).watch
  beside = [pathlib.Path(path) for path in watched if "benchmark_RELEASE" in path]
  assert len(beside) == 3
  assert all(path.exists() for path in beside)
