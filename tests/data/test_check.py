"""`check_dataset`: counts by hand, every bad file named, and the picture."""

import pathlib

import cv2
import numpy as np
import pytest

from jaxseg.data import DataError, check, check_dataset, dataset_info, overlay
from tests.data import miniature, official


@pytest.fixture
def settings(tmp_path):
  return miniature.settings(
    "folder",
    manual_dir=str(tmp_path / "mine"),
    data_dir=str(tmp_path / "prepared"),
    classes=("ground", "tree", "car"),
  )


def _write(settings, masks, split="train") -> list[pathlib.Path]:
  root = pathlib.Path(settings.manual_dir)
  paths = []
  for i, ids in enumerate(masks):
    ids = np.asarray(ids, np.uint8)
    official.picture(root / f"images/{split}/p{i}.jpg", i, ids.shape)
    paths.append(root / f"masks/{split}/p{i}.png")
    official.grey(paths[-1], ids)
  return paths


def test_counts(settings):
  _write(settings, [[[0, 0, 1, 255]], [[1, 1], [1, 1]], [[255], [255], [0]]])
  found = check_dataset(settings, "train")
  assert found.pixels.tolist() == [3, 5, 0] and found.images.tolist() == [2, 2, 0]
  assert (found.read, found.total, found.ignored, found.problems) == (3, 3, 3, [])
  lines = "\n".join(found.lines())
  assert "folder, split train: 3 of 3 examples read" in lines
  assert "min 1x1, median 2x2, max 3x4; 3 different sizes" in lines
  assert "without a label: 27.27% of the pixels" in lines  # 3 of 11
  assert ["1", "tree", "62.5000%", "2"] in [line.split() for line in found.lines()]
  assert "in none of them, 1: car" in lines
  assert not list(pathlib.Path(settings.data_dir).glob("*")), "checking prepares nothing"


def test_every_bad_file_is_named(settings):
  good, odd, broken, other = _write(settings, [np.zeros((8, 8))] * 4)
  official.grey(odd, np.full((8, 8), 3))
  broken.write_bytes(broken.read_bytes()[:40])
  official.grey(other, np.full((8, 8), 7))
  found = check_dataset(settings, "train", samples=0)
  assert found.read == 1 and len(found.problems) == 3
  for problem, path, what in zip(
    found.problems, (odd, broken, other), ("id 3", "truncated", "id 7"), strict=True
  ):
    assert str(path) in problem and what in problem
  assert str(good) not in " ".join(found.problems)
  assert [example["id"] for example in found.shown] == ["p0"]


def test_samples_are_spread(settings):
  _write(settings, [np.full((4, 4), i // 10) for i in range(30)])
  found = check_dataset(settings, "train", samples=6)
  assert (found.read, found.total, found.images.tolist()) == (6, 30, [2, 2, 2])
  # Every 30/8-th of p0, p1, p10, ..., p19, p2, p20, ...
  shown = ["p0", "p12", "p16", "p2", "p22", "p26", "p3", "p7"]
  assert [example["id"] for example in check_dataset(settings, "train").shown] == shown
  with pytest.raises(DataError, match="samples is -1; expected 0 for all"):
    check_dataset(settings, "train", samples=-1)
  with pytest.raises(DataError, match="folder has no split 'val'; it has train"):
    check_dataset(settings, "val")


def test_splits_together_prepared_or_drawn(settings):
  _write(settings, [np.zeros((4, 4))])
  _write(settings, [np.ones((4, 4))] * 2, split="val")
  assert check_dataset(settings, "train+val").images.tolist() == [1, 2, 0]
  assert check_dataset(miniature.settings("synthetic", num_val=4), "val").read == 4


def test_report_writes_the_picture_and_fails_on_bad_files(settings, tmp_path, capsys):
  paths = _write(settings, [np.zeros((8, 8))] * 9)
  lines = check.report(settings, "train", samples=0, output=str(tmp_path / "out"))
  path = tmp_path / "out" / "folder-train.png"
  assert lines[-1] == f"picture of 8 examples: {path}" and cv2.imread(str(path)) is not None
  paths[4].write_bytes(b"")
  with pytest.raises(DataError, match="1 of 9 examples are bad, see above"):
    check.report(settings, "train", samples=0, output=str(tmp_path / "out"))
  assert str(paths[4]) in capsys.readouterr().out


def test_picture(settings):
  info = dataset_info(settings)
  image = np.full((240, 320, 3), 100, np.uint8)
  label = np.full((240, 320), 255, np.uint8)
  label[:, :160] = 1
  mixed = overlay.blend(image, label, info)
  assert mixed[0, 0].tolist() == [50, 114, 50] and mixed[0, 319].tolist() == [100, 100, 100]
  examples = [{"image": image, "label": label, "id": str(i)} for i in range(8)]
  sheet = overlay.sheet(examples, info)
  # Two rows of four, each picture at its place, and one class in the legend.
  for row in range(2):
    for column in range(4):
      top, left = 8 + row * 268, 8 + column * 328
      np.testing.assert_array_equal(sheet[top : top + 240, left : left + 320], mixed)
  assert (sheet[2 * 268 + 8 :] == info.palette[1]).all(-1).sum() == 14 * 14
  one = overlay.sheet([{"image": image[:50], "label": 2, "id": "x"}], info)
  assert one[8, 8].tolist() == [100, 100, 100]


def test_imagenet(tmp_path):
  settings = miniature.settings("imagenet", manual_dir=str(tmp_path))
  for i, synset in enumerate(("n1", "n2", "n2", "n3")):
    official.picture(tmp_path / f"train/{synset}/{i}.JPEG", i)
    official.picture(tmp_path / f"val/{synset}/{i}.JPEG", i)
  found = check_dataset(settings, "train")
  assert found.images.tolist() == [1, 2, 1] and found.info.classes == ("n1", "n2", "n3")
  assert any("50.0000%" in line and "n2" in line for line in found.lines())
