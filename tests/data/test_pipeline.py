"""Batches are a pure function of (seed, step): whatever the processes, the threads, and where one starts."""

import hashlib
import itertools

import ml_collections
import numpy as np
import pytest

from jaxseg.data import DataError, eval_batches, open_split, synthetic, train_batches
from tests.data import miniature


def _digest(*batches) -> str:
  digest = hashlib.sha256()
  for name in ("image", "label", "id"):
    rows = np.concatenate([batch[name] for batch in batches])
    digest.update("\n".join(rows).encode() if name == "id" else rows.tobytes())
  return digest.hexdigest()


def _train(config, *, steps, batch_size=4, seed=0, start_step=0, **place):
  batches = train_batches(config, batch_size=batch_size, seed=seed, start_step=start_step, **place)
  return list(itertools.islice(batches, steps))


def test_shapes_and_types():
  batch = _train(miniature.settings("synthetic"), steps=1)[0]
  assert batch["image"].shape == (4, 32, 48, 3) and batch["image"].dtype == np.uint8
  assert batch["label"].shape == (4, 32, 48) and batch["label"].dtype == np.uint8
  assert batch["id"].shape == (4,) and batch["id"][0].startswith("train-")
  assert batch["box"].shape == (4, 4) and batch["box"].dtype == np.int32


def test_same_global_batches_on_any_number_of_processes():
  config = miniature.settings("synthetic")
  whole = [_digest(batch) for batch in _train(miniature.settings("synthetic"), steps=3, start_step=1)]
  for count in (1, 2, 4):
    parts = [
      _train(config, steps=3, start_step=1, process_index=i, process_count=count) for i in range(count)
    ]
    assert all(len(part[0]["image"]) == 4 // count for part in parts)
    assert [_digest(*rows) for rows in zip(*parts, strict=True)] == whole


def test_resume_is_a_slice():
  config = miniature.settings("synthetic")
  through = [_digest(b) for b in _train(config, steps=6)]
  assert [_digest(b) for b in _train(config, steps=3, start_step=3)] == through[3:]
  assert len(set(through)) == 6
  # A year's worth of steps costs nothing.
  assert len(_train(config, steps=1, start_step=50_000_000)) == 1


def test_seed_decides():
  config = miniature.settings("synthetic")
  assert _digest(*_train(config, steps=2)) != _digest(*_train(config, steps=2, seed=1))


def test_every_epoch_sees_every_example_once_in_another_order():
  config = miniature.settings("synthetic", num_train=10)
  batches = _train(config, steps=4, batch_size=5)
  ids = np.concatenate([batch["id"] for batch in batches])
  assert sorted(ids[:10]) == sorted(ids[10:]) == [f"train-{i:06d}" for i in range(10)]
  assert list(ids[:10]) != list(ids[10:])
  # The same example looks different in the second epoch.
  images = {i: [] for i in ids}
  for batch in batches:
    for name, image in zip(batch["id"], batch["image"], strict=True):
      images[name].append(image)
  assert sum(np.array_equal(*pair) for pair in images.values()) == 0


@pytest.mark.parametrize("num_train", [1, 3])
def test_fewer_examples_than_a_batch(num_train):
  batch = _train(miniature.settings("synthetic", num_train=num_train), steps=1, batch_size=8)[0]
  assert batch["image"].shape[0] == 8
  assert len(set(batch["id"])) == num_train


def test_fill_reaches_the_picture():
  config = miniature.settings("synthetic", crop_size=(80, 80), scale_range=(0.5, 0.5))
  image = next(train_batches(config, batch_size=1, seed=0, start_step=0, fill=(9, 8, 7)))["image"][0]
  assert image[-1, -1].tolist() == [9, 8, 7]


@pytest.mark.parametrize("pad", ["after_flip", "before_flip"])
def test_keep_ratio_and_class_ratio(pad):
  # 48x64 pictures fit (64, 24) as 24x32; a crop of 32 leaves 8 rows of padding.
  config = miniature.settings(
    "synthetic",
    crop_size=(32, 24),
    resize=(64, 24),
    scale_range=(1.0, 1.0),
    cat_max_ratio=0.4,
    pad=pad,
  )
  shares = []
  for ratio in (1.0, config.cat_max_ratio):
    config.cat_max_ratio = ratio
    of_crops = []
    for batch in _train(config, steps=10):
      assert batch["box"].tolist() == [[0, 0, 24, 24]] * 4
      assert (batch["label"][:, 24:] == 255).all()
      for label in batch["label"]:
        counts = np.bincount(label.ravel(), minlength=256)[:255]
        of_crops.append(counts.max() / counts.sum() < 0.4)
    shares.append(np.mean(of_crops))
  assert shares[1] > shares[0] + 0.05


def test_box_is_what_is_not_padding():
  # Shrunken pictures, mirrored or not: the fill shows outside of the box and not inside.
  config = miniature.settings("synthetic", crop_size=(80, 80), scale_range=(0.5, 1.2), pad="before_flip")
  batches = train_batches(config, batch_size=16, seed=0, start_step=0, fill=(0, 255, 0))
  batch = next(batches)
  lefts = set()
  for image, (top, left, bottom, right) in zip(batch["image"], batch["box"], strict=True):
    filled = (image == (0, 255, 0)).all(-1)
    outside = np.ones((80, 80), bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(filled, outside)
    lefts.add(left == 0)
  assert lefts == {True, False}


def test_takes_a_config_dict():
  config = ml_collections.ConfigDict(vars(miniature.settings("synthetic")))
  assert _digest(*_train(config, steps=1)) == _digest(*_train(miniature.settings("synthetic"), steps=1))


def test_errors_of_reading_arrive(monkeypatch):
  def fails(*args, **kwargs):
    raise DataError("the disk is gone")

  batches = train_batches(miniature.settings("synthetic"), batch_size=2, seed=0, start_step=0)
  monkeypatch.setattr(synthetic.SyntheticSource, "__getitem__", fails)
  with pytest.raises(DataError, match="the disk is gone"):
    next(batches)


def test_rule_is_checked_before_reading():
  with pytest.raises(DataError, match="crop_size"):
    train_batches(miniature.settings("synthetic", crop_size=(7,)), batch_size=2, seed=0, start_step=0)


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (dict(batch_size=6, process_count=4), "batch size 6 cannot be shared evenly by 4 processes; use 4 or 8"),
    (dict(batch_size=3, process_count=4), "by 4 processes; use 4$"),
    (dict(batch_size=4, process_count=2, process_index=2), "process_index is 2; expected 0 to 1"),
    (dict(batch_size=4, seed=-1), "seed is -1"),
    (dict(batch_size=4, start_step=-1), "start_step -1"),
  ],
)
def test_arguments_that_do_not_fit(arguments, sentence):
  with pytest.raises(DataError, match=sentence):
    train_batches(miniature.settings("synthetic"), **(dict(seed=0, start_step=0) | arguments))


@pytest.fixture
def mixed_sizes(tmp_path):
  """CamVid's layout with three sizes in a row: val is 32x24 | 24x32 24x32 | 32x24 | 24x32 24x32 | 32x24."""
  miniature.camvid(tmp_path / "source", counts=(("train", 2), ("val", 7)))
  return miniature.settings(
    "camvid", manual_dir=str(tmp_path / "source"), data_dir=str(tmp_path / "prepared")
  )


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_example_once_unchanged(mixed_sizes, workers):
  mixed_sizes.workers = workers
  source = open_split(mixed_sizes, "val")
  batches = list(eval_batches(mixed_sizes, "val", batch_size=2))
  assert [b["image"].shape[1:3] for b in batches] == [(32, 24), (32, 24), (24, 32), (24, 32)]
  order = [0, 3, 6, 1, 2, 4, 5]  # one size after the other
  assert [name for b in batches for name in b["id"] if name] == [source[i]["id"] for i in order]
  order = iter(order)
  for batch in batches:
    assert len(batch["image"]) == 2
    for image, label, name in zip(batch["image"], batch["label"], batch["id"], strict=True):
      if not name:
        assert (label == 255).all() and not image.any()
        continue
      example = source[next(order)]
      np.testing.assert_array_equal(image, example["image"])
      np.testing.assert_array_equal(label, example["label"])


def test_rows_in_any_share_are_those_of_the_whole_batch(mixed_sizes):
  # As where one image spans processes, or where the links between chips order them.
  shares = [(1, 2), (0, 3), (0, 3)]
  config = miniature.settings("synthetic")
  whole = next(train_batches(config, batch_size=4, seed=3, start_step=5))
  for rows in shares:
    part = next(train_batches(config, batch_size=4, seed=3, start_step=5, rows=rows))
    for name in ("image", "label", "id", "box"):
      np.testing.assert_array_equal(part[name], whole[name][list(rows)])
  whole = list(eval_batches(mixed_sizes, "val", batch_size=4))
  for rows in shares:
    for part, batch in zip(eval_batches(mixed_sizes, "val", batch_size=4, rows=rows), whole, strict=True):
      for name in ("image", "label", "id"):
        np.testing.assert_array_equal(part[name], batch[name][list(rows)])
  with pytest.raises(DataError, match=r"rows is .* expected rows of a batch of 4, ascending"):
    train_batches(config, batch_size=4, seed=0, start_step=0, rows=(3, 1))


@pytest.mark.parametrize("count", [2, 4])
def test_evaluation_rows_of_processes(mixed_sizes, count):
  whole = [_digest(b) for b in eval_batches(mixed_sizes, "val", batch_size=4)]
  parts = [
    list(eval_batches(mixed_sizes, "val", batch_size=4, process_index=i, process_count=count))
    for i in range(count)
  ]
  # Every process takes the same number of steps with equal shapes.
  assert len({tuple(b["image"].shape for b in part) for part in parts}) == 1
  assert [_digest(*rows) for rows in zip(*parts, strict=True)] == whole
