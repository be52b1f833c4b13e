"""Each builder on a miniature of its official layout: reads back equal, once; bad files are one sentence."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from jaxseg.data import DATASETS, DataError, dataset_info, dataset_module, files, open_split, preparing
from tests.data import miniature, official


@dataclasses.dataclass(frozen=True)
class Miniature:
  """One layout: how to write it, and how to damage the first example of its first split."""

  write: Callable[[pathlib.Path], official.Truth]
  layout: str  # the first path that a wrong folder lacks
  image: str
  mask: str
  bad_id: Callable[[pathlib.Path], None]  # puts an id into `mask` that is no class
  says: str  # what the error calls that id
  empty: Callable[[pathlib.Path], None]  # leaves a split without examples


def _remove(folder: str, pattern: str = "*"):
  return lambda root: [path.unlink() for path in (root / folder).glob(pattern)]


def _grey_id(mask: str, value: int):
  return lambda root: official.grey(root / mask, np.full(official.SIZE, value))


MAT = "annotations/COCO_train2014_000000000077.mat"
ADE = "ADEChallengeData2016/"
VOC = "VOCdevkit/VOC2012/"
CONTEXT = "VOCdevkit/VOC2010/"
MINIATURES = {
  "ade20k": Miniature(
    official.ade20k,
    "images/training",
    ADE + "images/training/ADE_train_00000001.jpg",
    ADE + "annotations/training/ADE_train_00000001.png",
    _grey_id(ADE + "annotations/training/ADE_train_00000001.png", 151),
    "id 151",
    _remove(ADE + "images/validation"),
  ),
  "cityscapes": Miniature(
    official.cityscapes,
    "leftImg8bit/train",
    "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
    "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
    _grey_id("gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png", 34),
    "id 34",
    _remove("leftImg8bit/val/lindau"),
  ),
  "coco_stuff_164k": Miniature(
    official.coco_stuff_164k,
    "train2017",
    "train2017/000000000009.jpg",
    "stuffthingmaps/train2017/000000000009.png",
    _grey_id("stuffthingmaps/train2017/000000000009.png", 11),
    "id 11",
    _remove("val2017"),
  ),
  "coco_stuff_10k": Miniature(
    official.coco_stuff_10k,
    "images",
    "images/COCO_train2014_000000000077.jpg",
    MAT,
    lambda root: official.matlab_map(
      root / "annotations/COCO_train2014_000000000077.mat", np.full(official.SIZE, 12)
    ),
    "id 12",
    lambda root: official.names_file(root / "imageLists/test.txt", []),
  ),
  "voc": Miniature(
    official.voc_devkit,
    "JPEGImages",
    VOC + "JPEGImages/2007_000032.jpg",
    VOC + "SegmentationClass/2007_000032.png",
    _grey_id(VOC + "SegmentationClass/2007_000032.png", 21),
    "id 21",
    lambda root: official.names_file(root / VOC / "ImageSets/Segmentation/val.txt", []),
  ),
  "pascal_context_59": Miniature(
    official.pascal_context_png,
    "JPEGImages",
    CONTEXT + "JPEGImages/2008_000003.jpg",
    CONTEXT + "SegmentationClassContext/2008_000003.png",
    _grey_id(CONTEXT + "SegmentationClassContext/2008_000003.png", 60),
    "id 60",
    lambda root: official.names_file(root / CONTEXT / "ImageSets/SegmentationContext/val.txt", []),
  ),
  "isaid": Miniature(
    official.isaid_pictures,
    "train/images",
    "train/images/P0000.png",
    "train/Semantic_masks/images/P0000_instance_color_RGB.png",
    lambda root: official.colored(
      root / "train/Semantic_masks/images/P0000_instance_color_RGB.png",
      np.zeros((896, 1000), np.uint8),
      {(1, 2, 3): 0},
    ),
    r"the colour \(1, 2, 3\)",
    _remove("val/images"),
  ),
}


@pytest.fixture(params=MINIATURES)
def case(request, tmp_path):
  """(miniature, its folder, `config.data`)."""
  settings = miniature.settings(
    request.param, manual_dir=str(tmp_path / "source"), data_dir=str(tmp_path / "prepared")
  )
  return MINIATURES[request.param], tmp_path / "source", settings


def assert_equal(source, truth: list) -> None:
  """Names in their order, pictures and labels to the bit."""
  assert [source[i]["id"] for i in range(len(source))] == [name for name, _, _ in truth]
  for i, (_, shown, label) in enumerate(truth):
    np.testing.assert_array_equal(source[i]["image"], shown)
    np.testing.assert_array_equal(source[i]["label"], label)
    assert source.size(i) == label.shape


def test_every_dataset_has_a_miniature():
  """Of those that are not here, each has tests of its own."""
  elsewhere = {"camvid", "folder", "imagenet", "pascal_context_60", "synthetic", "synthetic_classes"}
  assert set(DATASETS) - elsewhere == set(MINIATURES), (
    "give a new data set a miniature in tests/data/official.py and its entry in MINIATURES"
  )


def test_reads_back_equal_and_prepares_once(case, capsys):
  mini, root, settings = case
  truth = mini.write(root)
  if settings.name == "isaid":
    truth = {split: _tiles(*examples[0]) for split, examples in truth.items()}
  num_classes = dataset_info(settings).num_classes
  for split, examples in truth.items():
    assert_equal(open_split(settings, split), examples)
    present = np.unique(np.concatenate([label.ravel() for _, _, label in examples]))
    assert set(present.tolist()) - {255} == set(range(num_classes)), "the miniature shows every class"
  assert capsys.readouterr().out.count("preparing") == 1
  before = _times(settings.data_dir)
  for split in truth:
    open_split(settings, split)
  assert capsys.readouterr().out == "" and _times(settings.data_dir) == before


def _times(folder: str) -> dict:
  return {str(path): path.stat().st_mtime_ns for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def _tiles(name: str, shown: np.ndarray, label: np.ndarray) -> list:
  """By the rule written out for the two miniatures: 896x1000 and 900x896."""
  starts = {896: [0], 900: [0, 4], 1000: [0, 104]}
  return [
    (f"{name}_{y}_{y + 896}_{x}_{x + 896}", shown[y : y + 896, x : x + 896], label[y : y + 896, x : x + 896])
    for x in starts[label.shape[1]]
    for y in starts[label.shape[0]]
  ]


def test_interrupted_prepare_is_done_again(case, monkeypatch):
  mini, root, settings = case
  truth = mini.write(root)
  read, seen = files.read_bytes, []

  def interrupted(path: str) -> bytes:
    seen.append(path)
    if len(seen) == 3:
      raise KeyboardInterrupt
    return read(path)

  split = next(iter(truth))
  with monkeypatch.context() as patch:
    patch.setattr(files, "read_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
      open_split(settings, split)
  with pytest.raises(DataError, match="no prepared"):
    open_split(miniature.settings(settings.name, data_dir=settings.data_dir), split)
  assert len(open_split(settings, split)) >= len(truth[split])
  assert not list(pathlib.Path(settings.data_dir).rglob("incomplete*"))


def _truncate(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


DAMAGE = {
  "wrong folder": (
    lambda mini, root: [path.rename(root.parent / path.name) for path in list(root.iterdir())],
    lambda mini: rf"source/{mini.layout} does not exist; data.manual_dir must be a folder with\n",
  ),
  "truncated picture": (
    lambda mini, root: _truncate(root / mini.image),
    lambda mini: rf"image .*/{mini.image} is truncated",
  ),
  "truncated mask": (
    lambda mini, root: _truncate(root / mini.mask),
    lambda mini: rf"mask .*/{mini.mask} is truncated",
  ),
  "mask of another size": (
    lambda mini, root: official.picture(root / mini.image, 0, (40, 48)),
    lambda mini: rf"image .*/{mini.image} is 40x48 .* but its mask .*/{mini.mask} is",
  ),
  "id outside the table": (
    lambda mini, root: mini.bad_id(root),
    lambda mini: rf"mask .*/{mini.mask} has {mini.says}.*, which is no class",
  ),
  "missing mask": (
    lambda mini, root: (root / mini.mask).unlink(),
    lambda mini: rf"mask .*/{mini.mask} of image .*/{mini.image} is missing",
  ),
  "empty split": (lambda mini, root: mini.empty(root), lambda mini: r"split '(val|test)' is empty"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_sentence(case, damage):
  mini, root, settings = case
  split = next(iter(mini.write(root)))
  break_it, sentence = DAMAGE[damage]
  break_it(mini, root)
  with pytest.raises(DataError, match=sentence(mini)) as caught:
    open_split(settings, split)
  assert len(str(caught.value).splitlines()) == 1 or damage == "wrong folder"
  assert not list(pathlib.Path(settings.data_dir).rglob("dataset_info.json"))


def test_splits_without_labels_are_refused(case):
  _, _, settings = case
  absent = dataset_module(settings.name).original(settings).absent
  if not absent:
    pytest.skip(f"{settings.name} names no split that nobody can have")
  wanted = next(iter(absent))
  with pytest.raises(DataError, match=f"{settings.name.removesuffix('_59')} has no split '{wanted}': the"):
    open_split(settings, wanted)


def test_many_shards_read_like_one(tmp_path, monkeypatch):
  settings = miniature.settings(
    "cityscapes", manual_dir=str(tmp_path / "source"), data_dir=str(tmp_path / "prepared")
  )
  truth = official.cityscapes(tmp_path / "source")
  monkeypatch.setattr(preparing, "_SHARD_BYTES", 1)
  assert_equal(open_split(settings, "train"), truth["train"])
  shards = list(pathlib.Path(settings.data_dir).rglob("*-train.array_record*"))
  assert len(shards) == len(truth["train"]) == 3
