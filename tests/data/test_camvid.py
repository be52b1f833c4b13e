"""CamVid: what is prepared reads back equal, once, whole or not at all; bad files are named."""

import contextlib
import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import DataError, dataset_info, open_split, places
from tests.data import miniature

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
  return miniature.settings(
    "camvid", manual_dir=str(tmp_path / "source"), data_dir=str(tmp_path / "prepared")
  )


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_reads_back_equal(config, suffix):
  truth = miniature.camvid(pathlib.Path(config.manual_dir), suffix=suffix)
  for split, count in (("train", 4), ("val", 3)):
    source = open_split(config, split)
    assert [source[i]["id"] for i in range(len(source))] == [f"{split}_{i}" for i in range(count)]
    for i in range(count):
      image, raw = truth[split, f"{split}_{i}"]
      if suffix == ".jpg":
        image = np.asarray(Image.open(pathlib.Path(config.manual_dir) / split / f"{split}_{i}.jpg"))
      example = source[i]
      np.testing.assert_array_equal(example["image"], image)
      np.testing.assert_array_equal(example["label"], np.where(raw == 11, 255, raw))
      assert source.size(i) == raw.shape


def test_info():
  info = dataset_info(miniature.settings("camvid"))
  assert (info.num_classes, info.classes[3], info.classes[10]) == (11, "road", "bicyclist")
  assert info.palette[3].tolist() == [128, 64, 128]


def test_second_prepare_is_a_no_op(config, capsys):
  miniature.camvid(pathlib.Path(config.manual_dir))
  open_split(config, "train")
  assert "preparing camvid (4 train, 3 val pairs)" in capsys.readouterr().out
  before = _snapshot(config.data_dir)
  open_split(config, "val")
  assert capsys.readouterr().out == ""
  assert _snapshot(config.data_dir) == before


def test_prepared_data_needs_no_source(config):
  miniature.camvid(pathlib.Path(config.manual_dir))
  with pytest.raises(DataError, match=r"no prepared camvid; set data\.manual_dir"):
    open_split(miniature.settings("camvid", data_dir=config.data_dir), "val")
  expected = open_split(config, "val")[1]
  alone = open_split(miniature.settings("camvid", data_dir=config.data_dir), "val")[1]
  np.testing.assert_array_equal(alone["label"], expected["label"])


def test_changed_source_is_prepared_again(config):
  source = pathlib.Path(config.manual_dir)
  miniature.camvid(source)
  assert len(open_split(config, "train")) == 4
  miniature.write_pair(source / "train" / "zz.png", source / "trainannot" / "zz.png", seed=9)
  assert len(open_split(config, "train")) == 5
  with pytest.raises(DataError, match="2 prepared copies"):
    open_split(miniature.settings("camvid", data_dir=config.data_dir), "train")


def test_test_split_where_the_folder_has_it(config):
  miniature.camvid(pathlib.Path(config.manual_dir))
  with pytest.raises(DataError, match="camvid has no split 'test'; it has train, val"):
    open_split(config, "test")
  miniature.camvid(pathlib.Path(config.manual_dir), counts=(("test", 2),))
  assert len(open_split(config, "test")) == 2


def test_list_gives_order_and_choice(config):
  source = pathlib.Path(config.manual_dir)
  miniature.camvid(source, suffix=".jpg")
  # The origin's lists name another disk and another suffix.
  (source / "train.txt").write_text("".join(f"/SegNet/CamVid/train/train_{i}.png x\n" for i in (2, 0)))
  split = open_split(config, "train")
  assert [split[i]["id"] for i in range(len(split))] == ["train_2", "train_0"]
  (source / "train.txt").write_text("train/train_7.png trainannot/train_7.png\n")
  with pytest.raises(DataError, match=r"train_7 .* is listed but missing"):
    open_split(config, "train")


def test_neither_direction_needs_tensorflow(config, tmp_path):
  miniature.camvid(pathlib.Path(config.manual_dir))
  # Looks installed, and tells on whoever imports it.
  (tmp_path / "tensorflow.py").write_text("raise ImportError('TensorFlow was imported')")
  code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from tests.data import miniature
from jaxseg.data import open_split
config = miniature.settings("camvid", manual_dir={config.manual_dir!r}, data_dir={config.data_dir!r})
for _ in range(2):
  assert len(open_split(config, "val")[0]["id"])
assert "tensorflow" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_killed_while_preparing(config):
  miniature.camvid(pathlib.Path(config.manual_dir))
  code = f"""
import os
from tests.data import miniature
from jaxseg.data import images, open_split
check, seen = images.check_pair, []
def dies(*args, **kwargs):
  seen.append(1)
  if len(seen) == 6:
    os._exit(7)
  check(*args, **kwargs)
images.check_pair = dies
config = miniature.settings("camvid", manual_dir={config.manual_dir!r}, data_dir={config.data_dir!r})
open_split(config, "val")
"""
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 7
  prepared = pathlib.Path(config.data_dir)
  assert list(prepared.rglob("incomplete.*")), "the test must leave an unfinished preparation"
  with pytest.raises(DataError, match="no prepared camvid"):
    open_split(miniature.settings("camvid", data_dir=config.data_dir), "val")
  assert (len(open_split(config, "train")), len(open_split(config, "val"))) == (4, 3)
  assert not list(prepared.rglob("incomplete.*"))


def test_two_processes_prepare_at_once(config):
  miniature.camvid(pathlib.Path(config.manual_dir))
  code = f"""
import hashlib
from tests.data import miniature
from jaxseg.data import open_split
config = miniature.settings("camvid", manual_dir={config.manual_dir!r}, data_dir={config.data_dir!r})
split = open_split(config, "train")
print("labels", hashlib.sha256(b"".join(split[i]["label"].tobytes() for i in range(4))).hexdigest())
"""
  both = [
    subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  outputs = [process.communicate()[0].splitlines() for process in both]
  assert [process.returncode for process in both] == [0, 0]
  assert outputs[0][-1] == outputs[1][-1]
  assert sum(line.startswith("preparing") for lines in outputs for line in lines) == 1


def test_where_prepared_data_goes(monkeypatch):
  monkeypatch.setenv("HOME", "/home/somebody")
  monkeypatch.delenv("JAXSEG_DATA_DIR", raising=False)
  assert str(places.data_root("")) == "/home/somebody/.cache/jaxseg/datasets"
  monkeypatch.setenv("JAXSEG_DATA_DIR", "/elsewhere")
  assert str(places.data_root("")) == "/elsewhere"
  assert str(places.data_root("gs://bucket/data")) == "gs://bucket/data"


def test_another_process_finishes_while_this_one_waits(config, monkeypatch, capsys):
  miniature.camvid(pathlib.Path(config.manual_dir))
  lock = places.locked

  @contextlib.contextmanager
  def slow_lock(folder):
    monkeypatch.setattr(places, "locked", lock)
    open_split(config, "train")
    with lock(folder):
      yield

  monkeypatch.setattr(places, "locked", slow_lock)
  assert len(open_split(config, "train")) == 4
  assert capsys.readouterr().out.count("preparing camvid") == 1


def test_wrong_folder_prints_the_layout(config):
  with pytest.raises(
    DataError, match=r"source does not exist; data.manual_dir must be a folder with\n.*trainannot/"
  ):
    open_split(config, "train")
  miniature.camvid(pathlib.Path(config.manual_dir), counts=(("train", 2),))
  with pytest.raises(DataError, match=r"source/val does not exist"):
    open_split(config, "train")


def _truncate(path: pathlib.Path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _mask(path: pathlib.Path, array: np.ndarray):
  Image.fromarray(array).save(path)


DAMAGE = {
  "id outside the classes": (
    lambda s: _mask(s / "trainannot/train_1.png", np.full((24, 32), 12, np.uint8)),
    r"mask .*trainannot/train_1.png has id 12, which is no class; known ids: 0-11\.",
  ),
  "sizes differ": (
    lambda s: _mask(s / "trainannot/train_1.png", np.zeros((24, 31), np.uint8)),
    r"train_1.jpg is 24x32 .* but its mask .*train_1.png is 24x31",
  ),
  "truncated JPEG": (lambda s: _truncate(s / "train/train_1.jpg"), r"image .*train_1.jpg is truncated"),
  "truncated PNG": (lambda s: _truncate(s / "trainannot/train_2.png"), r"mask .*train_2.png is truncated"),
  "not a picture": (
    lambda s: (s / "val/val_0.jpg").write_text("hello"),
    r"val_0.jpg is truncated or not a picture",
  ),
  "missing mask": (
    lambda s: (s / "valannot/val_0.png").unlink(),
    r"mask .*val_0.png of image .*val_0.jpg is missing",
  ),
  "RGB mask": (
    lambda s: _mask(s / "trainannot/train_1.png", np.zeros((24, 32, 3), np.uint8)),
    r"train_1.png is RGB; expected one class id a pixel",
  ),
  "empty split": (lambda s: [p.unlink() for p in (s / "val").iterdir()], r"split 'val' is empty"),
  "two pictures of one name": (
    lambda s: (s / "train/train_1.png").write_bytes((s / "train/train_1.jpg").read_bytes()),
    r"train_1.jpg and train_1.png; one picture a name",
  ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_files_are_named(config, damage):
  source = pathlib.Path(config.manual_dir)
  miniature.camvid(source, suffix=".jpg")
  break_it, sentence = DAMAGE[damage]
  break_it(source)
  with pytest.raises(DataError, match=sentence):
    open_split(config, "train")
  # Nothing half-written is taken for a data set.
  with pytest.raises(DataError, match="no prepared camvid"):
    open_split(miniature.settings("camvid", data_dir=config.data_dir), "train")


def test_real_camvid(shared, real_camvid):
  folder = shared / "data" / "camvid"
  val = open_split(real_camvid, "val")
  assert (len(open_split(real_camvid, "train")), len(val)) == (367, 101)
  first = val[0]
  assert first["id"] == pathlib.Path((folder / "val.txt").read_text().split()[0]).stem
  raw = np.asarray(Image.open(folder / "valannot" / f"{first['id']}.png"))
  np.testing.assert_array_equal(first["label"], np.where(raw == 11, 255, raw))
  np.testing.assert_array_equal(first["image"], np.asarray(Image.open(folder / "val" / f"{first['id']}.jpg")))


def _snapshot(folder: str) -> dict[str, tuple[int, str]]:
  return {
    str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }
