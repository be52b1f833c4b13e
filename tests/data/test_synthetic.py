"""Synthetic scenes: the same everywhere, disjoint splits, and a task that colour does not solve."""

import hashlib

import numpy as np
import pytest

from jaxseg.data import DataError, dataset_info, open_split, synthetic
from tests.data import miniature

# SHA-256 over image and label of the first four scenes of a split at 96x96, eight classes.
GOLDEN = {
  "train": "974bec9239ce01a4c3918d106cc5e03dcad1a654a4b0057126d25cc290f077d9",
  "val": "9b5a00b55d1f103c8987074d3f9470d82a8c3452aeb2118992c0e5ae382364cc",
}


def _source(split="train", **changes):
  return open_split(
    miniature.settings("synthetic", **({"image_size": (96, 96), "num_val": 60} | changes)), split
  )


@pytest.mark.parametrize("split", GOLDEN)
def test_golden(split):
  digest = hashlib.sha256()
  for index in range(4):
    example = _source(split)[index]
    digest.update(example["image"].tobytes() + example["label"].tobytes())
  assert digest.hexdigest() == GOLDEN[split], (
    "the scenes changed: published quickstart figures no longer apply"
  )


def test_examples():
  source = _source(image_size=(40, 56), num_train=3)
  assert len(source) == 3 and source.size(2) == (40, 56)
  example = source[2]
  assert example["id"] == "train-000002"
  assert example["image"].shape == (40, 56, 3) and example["image"].dtype == np.uint8
  assert example["label"].shape == (40, 56) and example["label"].dtype == np.uint8
  with pytest.raises(IndexError, match="index 3 is outside the 3 examples"):
    source[3]


def test_order_of_reading_does_not_matter():
  source = _source()
  first = source[5]["image"]
  _ = source[0]
  np.testing.assert_array_equal(source[5]["image"], first)


def test_splits_share_no_scene():
  seen = {
    split: {_source(split, num_train=60)[i]["image"].tobytes() for i in range(60)}
    for split in ("train", "val")
  }
  assert len(seen["train"]) == len(seen["val"]) == 60
  assert not seen["train"] & seen["val"]


def test_no_class_dominates_and_some_pixels_are_ignored():
  labels = np.stack([_source("val")[i]["label"] for i in range(60)])
  counts = np.bincount(labels.ravel(), minlength=256)
  shares = counts[:8] / counts[:8].sum()
  assert shares.min() > 0.06 and shares.max() < 0.2
  # Saying "the most frequent class" everywhere: its share, over eight classes.
  assert shares.max() / 8 < 0.2
  assert 0.02 < counts[255] / counts.sum() < 0.15
  assert counts[8:255].sum() == 0


def test_colour_does_not_tell_the_class():
  """The best possible guess from a pixel's colour alone (a table of 4096 colours) stays near chance."""
  train, val = _source("train", num_train=150), _source("val")

  def pixels(source, count):
    examples = [source[i] for i in range(count)]
    image = np.stack([e["image"] for e in examples]).astype(int) >> 4
    label = np.stack([e["label"] for e in examples])
    color = image[..., 0] << 8 | image[..., 1] << 4 | image[..., 2]
    return color[label != 255], label[label != 255]

  color, label = pixels(train, 150)
  table = np.bincount(color * 8 + label, minlength=4096 * 8).reshape(4096, 8).argmax(-1)
  color, label = pixels(val, 60)
  matrix = np.bincount(label.astype(int) * 8 + table[color], minlength=64).reshape(8, 8)
  hits = np.diag(matrix)
  miou = np.mean(hits / (matrix.sum(0) + matrix.sum(1) - hits))
  assert miou < 0.15, miou


@pytest.mark.parametrize("count", [6, 19, 150, 255])
def test_any_number_of_classes(count):
  classes = tuple(f"class {i}" for i in range(count))
  source = _source(classes=classes, num_train=80, image_size=(64, 64))
  assert dataset_info(miniature.settings("synthetic", classes=classes)).num_classes == count
  found = np.unique(np.stack([source[i]["label"] for i in range(80)]))
  assert found[-1] == 255 and found[-2] < count
  assert len(found) - 1 > 0.7 * count


def test_classes_of_one_pattern_differ_in_spacing():
  rng = np.random.default_rng(0)
  y, x = np.ogrid[:240, :240]
  changes = {}
  for kind in (1, 8, 15):  # rows, in three widths
    rows = synthetic._pattern(rng, y, x, kind=kind, num_classes=19)
    changes[kind] = int((rows[1:] != rows[:-1]).all(axis=1).sum())
    assert (rows == rows[:, :1]).all()
  assert changes[1] > changes[8] > changes[15]


@pytest.mark.parametrize(
  ("split", "change", "sentence"),
  [
    ("training", {}, "synthetic has no split 'training'; it has test, train, val"),
    ("train", {"classes": ("a", "b")}, "2 classes; give at least 6 names or none"),
    ("train", {"image_size": (96,)}, r"image_size is \(96,\); expected \(height, width\)"),
    ("val", {"num_val": 0}, "split 'val' has 0 examples; set data.num_val to at least 1"),
  ],
)
def test_settings_that_do_not_fit(split, change, sentence):
  with pytest.raises(DataError, match=sentence):
    _source(split, **change)


def test_large_scenes_do_not_overflow():
  image, label = synthetic.draw_scene(0, 0, 0, size=(1024, 1536), num_classes=8)
  assert image.shape == (1024, 1536, 3)
  assert len(np.unique(label)) > 3
