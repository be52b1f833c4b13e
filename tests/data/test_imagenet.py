"""ImageNet: classes by the order of the folders, a val/ in folders or by the devkit's list."""

import importlib.util
import pathlib

import numpy as np
import pytest
import scipy.io

from jaxseg import data
from jaxseg.data import DataError, dataset_info, files, imagenet, open_split, preparing
from tests.data import miniature, official

SYNSETS = ("n01440764", "n01443537", "n02084071")
# Numbers of the devkit are in another order than the synsets, and go on with inner nodes.
NUMBERS = {1: SYNSETS[2], 2: SYNSETS[0], 3: SYNSETS[1], 4: "n00001740"}
VAL = (3, 1, 2, 1)


@pytest.fixture
def source(tmp_path):
  return tmp_path / "source"


@pytest.fixture
def settings(tmp_path, source):
  return miniature.settings("imagenet", manual_dir=str(source), data_dir=str(tmp_path / "prepared"))


def _train(root: pathlib.Path) -> list:
  return [
    (f"{synset}/{synset}_{i}", official.picture(root / f"train/{synset}/{synset}_{i}.JPEG", i + label), label)
    for label, synset in enumerate(SYNSETS)
    for i in (2, 7)
  ]


def _val_in_folders(root: pathlib.Path) -> list:
  members = sorted((NUMBERS[number], i) for i, number in enumerate(VAL))
  return [
    (f"{synset}/v{i}", official.picture(root / f"val/{synset}/v{i}.JPEG", i), SYNSETS.index(synset))
    for synset, i in members
  ]


def _val_by_list(root: pathlib.Path) -> list:
  devkit = root / "ILSVRC2012_devkit_t12/data"
  official.names_file(devkit / "ILSVRC2012_validation_ground_truth.txt", VAL)
  fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
  table = np.array([(number, wnid, 0) for number, wnid in NUMBERS.items()], fields)
  scipy.io.savemat(devkit / "meta.mat", {"synsets": table[:, None]})
  names = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(len(VAL))]
  return [
    (name, official.picture(root / f"val/{name}.JPEG", i), SYNSETS.index(NUMBERS[number]))
    for i, (name, number) in enumerate(zip(names, VAL, strict=True))
  ]


def _assert_equal(split, truth) -> None:
  found = [split[i] for i in range(len(split))]
  assert [(e["id"], e["label"]) for e in found] == [(name, label) for name, _, label in truth]
  for i, (example, (_, shown, _)) in enumerate(zip(found, truth, strict=True)):
    np.testing.assert_array_equal(example["image"], shown)
    assert split.size(i) == shown.shape[:2]


@pytest.mark.parametrize("val", [_val_in_folders, _val_by_list])
def test_reads_back_equal(settings, source, val, capsys):
  train, val = _train(source), val(source)
  _assert_equal(open_split(settings, "train"), train)
  _assert_equal(open_split(settings, "val"), val)
  assert capsys.readouterr().out.count("preparing imagenet (6 train, 4 val pictures)") == 1
  assert dataset_info(settings).classes == SYNSETS


def test_added_pictures_are_noticed(settings, source):
  _train(source), _val_in_folders(source)
  first = preparing.fingerprint(imagenet.original(settings))
  assert preparing.fingerprint(imagenet.original(settings)) == first
  official.picture(source / f"train/{SYNSETS[1]}/new.JPEG", 0)
  assert preparing.fingerprint(imagenet.original(settings)) != first


def test_interrupted_prepare_is_done_again(settings, source, monkeypatch):
  truth = _train(source)
  _val_in_folders(source)
  with monkeypatch.context() as patch:
    patch.setattr(files, "read_bytes", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      open_split(settings, "train")
  assert not list(pathlib.Path(settings.data_dir).rglob("dataset_info.json"))
  _assert_equal(open_split(settings, "train"), truth)


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs the beam extra")
@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam_writes_the_same(settings, source):
  train, val = _train(source), _val_by_list(source)
  data.prepare(settings, beam_runner="DirectRunner")
  _assert_equal(open_split(settings, "train"), train)
  _assert_equal(open_split(settings, "val"), val)


def _cut(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[:300])


TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
DAMAGE = {
  "wrong folder": (
    lambda root: (root / "train").rename(root / "training"),
    r"source/train does not exist; data.manual_dir must be a folder with\n  train/SYNSET/NAME.JPEG",
  ),
  "truncated picture": (
    lambda root: _cut(root / f"train/{SYNSETS[1]}/{SYNSETS[1]}_7.JPEG"),
    rf"image .*{SYNSETS[1]}_7.JPEG is truncated",
  ),
  "no list": (lambda root: (root / TRUTH).unlink(), rf"source/{TRUTH} does not exist; data.manual_dir"),
  "list of another length": (
    lambda root: official.names_file(root / TRUTH, [1, 2]),
    "val has 4 pictures, but .* 2 l",
  ),
  "number outside the classes": (
    lambda root: official.names_file(root / TRUTH, [1, 2, 3, 4]),
    "ground_truth.txt has the number 4, which is no class of train/",
  ),
  "damaged table": (
    lambda root: _cut(root / "ILSVRC2012_devkit_t12/data/meta.mat"),
    "meta.mat is truncated or another file",
  ),
  "class that train lacks": (
    lambda root: official.picture(root / "val/n09999999/a.JPEG", 0),
    "val/n09999999 is a class that train/ does not have",
  ),
  "empty split": (
    lambda root: [path.unlink() for path in (root / "val").iterdir()],
    "split 'val' is empty",
  ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_sentence(settings, source, damage):
  _train(source), _val_by_list(source)
  break_it, sentence = DAMAGE[damage]
  break_it(source)
  with pytest.raises(DataError, match=sentence):
    open_split(settings, "train")
