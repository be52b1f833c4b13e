"""Data of somebody: names, lists, ids, labels, damaged shards, places that cannot be written."""

import itertools
import pathlib
import pwd
import resource
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxseg import bucket
from jaxseg.data import DataError, check_labels, folder, open_split, places
from jaxseg.errors import UserError
from jaxseg.evaluation.report import Report
from tests.data import miniature
from tests.hostile.changes import assert_sentence, cases, damages

SIDE = 8


def picture(root, name, mask=None):
  for kind, array in (("images", np.zeros((SIDE, SIDE, 3), np.uint8)), ("masks", mask)):
    path = root / kind / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8) if array is None else array).save(path)


def own(root, **changes):
  settings = dict(manual_dir=str(root), data_dir=str(root / "made"), classes=("ground", "tree", "car"))
  return miniature.settings("folder", **(settings | changes))


# Stems of which one begins another, ends in a space or looks like a file.
STEMS = ("a", "a b", "a  b", "b", "a.png", "ab", "b a", "a_b", "ä", "-a", "#a", "a,b")


def named(line):
  """The image that a line means: the file of just this name, else the image so called; None for none."""
  line = line.strip().removeprefix("./").removeprefix("images/")
  if line.endswith(".png") and line[:-4] in STEMS:
    return line[:-4]
  return line if line in STEMS else None


def test_a_line_of_a_list_is_one_whole_name(tmp_path):
  for stem in STEMS:
    picture(tmp_path, stem)
  ends = st.sampled_from(["", ".png", " ", "\r"])
  line = st.tuples(
    st.sampled_from(["", "images/", "./"]), st.sampled_from([*STEMS, "c", "a c", "a b c"]), ends
  )

  @cases(60)
  @given(st.lists(line, min_size=1, max_size=3), st.lists(line, min_size=1, max_size=2))
  def case(train, val):
    for name, lines in (("train", train), ("val", val)):
      (tmp_path / f"{name}.txt").write_bytes("\n".join(map("".join, lines)).encode() + b"\n")
    wanted = [[named("".join(line)) for line in lines] for lines in (train, val)]
    ids = wanted[0] + wanted[1]
    try:
      found = folder.find_pairs(own(tmp_path))
    except DataError as error:
      assert_sentence(error, lines=6)
      assert None in ids or len(set(ids)) < len(ids), (train, val)
      return
    assert [sorted(pair.id for pair in found[split]) for split in ("train", "val")] == [
      sorted(names) for names in wanted
    ]
    assert all(pathlib.Path(pair.image).name == f"{pair.id}.png" for pair in itertools.chain(*found.values()))
    assert len(set(ids)) == len(ids), "an image twice, or in two splits"

  case()


def test_a_label_map_is_pairs_of_whole_numbers_each_once(tmp_path):
  picture(tmp_path, "train/a")
  item = st.one_of(
    st.integers(-2, 5), st.sampled_from([255, 256, 65535, 65536, 2**70, 0.5, 1.0, None, "1", True])
  )
  pairs = st.lists(
    st.one_of(st.tuples(item, item), item, st.tuples(item, item, item)), min_size=1, max_size=4
  )

  @cases(120)
  @given(pairs.map(tuple))
  def case(label_map):
    try:
      table = folder.mapping(own(tmp_path, label_map=label_map))
    except DataError as error:
      assert_sentence(error)
      return
    assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in label_map)
    raw = [pair[0] for pair in label_map]
    assert len(set(raw)) == len(raw) and all(
      type(value) in (int, bool) for pair in label_map for value in pair
    )
    assert all(0 <= key < 65536 and (0 <= value < 3 or value == 255) for key, value in label_map)
    assert all(table[int(key)] == value for key, value in label_map)

  case()


class Drawn:
  """A source of label maps that are there already."""

  def __init__(self, labels):
    self.labels = labels

  def __len__(self):
    return len(self.labels)

  def size(self, index):
    return self.labels[index].shape

  def __getitem__(self, index):
    label = self.labels[index]
    return {"image": np.zeros((*label.shape, 3), np.uint8), "label": label, "id": str(index)}


def test_labels_that_teach_nothing_are_said():
  @cases(60)
  @given(
    st.lists(st.lists(st.sampled_from([0, 1, 255]), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(1, 3),
  )
  def case(rows, classes):
    labels = [np.array(row, np.uint8).reshape(2, 2) for row in rows]
    labels = [np.where(label < classes, label, 255).astype(np.uint8) for label in labels]
    config = miniature.settings("folder", classes=("ground", "tree", "car")[:classes])
    values = np.concatenate([label.ravel() for label in labels])
    try:
      warnings = check_labels(Drawn(labels), folder.info(config))
    except DataError as error:
      assert_sentence(error)
      assert (values == 255).all()
      return
    assert not (values == 255).all()
    present = set(values[values != 255].tolist())
    if len(present) < classes or classes == 1:
      assert warnings, "one class, or one that never occurs, is said"

  case()


def test_scores_are_json_whatever_was_counted():
  import json

  @cases(50)
  @given(st.lists(st.sampled_from([0, 0, 0, 1, 2**40]), min_size=9, max_size=9))
  def case(counts):
    report = Report(np.array(counts, np.int64).reshape(3, 3))
    json.loads(json.dumps(report.to_dict(("a", "b", "c")), allow_nan=False))
    from jaxseg.train.metrics import _as_json

    json.loads(_as_json({"step": 1, **report.scalars()}), parse_constant=lambda word: 1 / 0)

  case()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  root = tmp_path_factory.mktemp("shards")
  rng = np.random.default_rng(0)
  for i in range(3):
    picture(root, f"train/{i}", rng.integers(0, 3, (SIDE, SIDE)).astype(np.uint8))
    picture(root, f"val/{i}")
  return own(root), [open_split(own(root), "train")[i]["label"] for i in range(3)]


def test_a_damaged_shard_is_named_with_the_remedy(prepared):
  config, labels = prepared
  (shard,) = [p for p in pathlib.Path(config.data_dir).rglob("*array_record*") if "train" in p.name]
  sound = shard.read_bytes()

  @cases(20)
  @given(damages(kinds=("cut", "flip", "empty")))
  def case(change):
    shard.write_bytes(change(sound))
    try:
      source = open_split(config, "train")
      assert len(source) == 3
      for index in range(3):
        np.testing.assert_array_equal(source[index]["label"], labels[index])
    except DataError as error:
      assert_sentence(error)
      assert "delete" in str(error) and str(shard.parent.name) in str(error)
    finally:
      shard.write_bytes(sound)

  case()


@pytest.mark.parametrize("place", ["file/below", "/proc/nothing", "/dev/null/x", "\0", "a" * 300])
def test_a_place_for_prepared_data_that_cannot_be(tmp_path, place):
  picture(tmp_path, "train/a")
  picture(tmp_path, "val/a")
  (tmp_path / "file").write_text("")
  where = place if place.startswith("/") else f"{tmp_path}/{place}"
  with pytest.raises(UserError) as error:
    open_split(own(tmp_path, data_dir=where), "train")
  assert_sentence(error.value)


def test_no_room_for_prepared_data(tmp_path):
  """The writer of shards has errors of its own for a full disk; what is half written is not taken later."""
  rng = np.random.default_rng(0)
  for name in ("train/a", "train/b", "val/a"):
    picture(tmp_path, name)
    noise = rng.integers(0, 255, (99, 99, 3)).astype(np.uint8)
    for kind, array in (("images", noise), ("masks", noise[..., 0] // 128)):
      Image.fromarray(array).save(tmp_path / kind / f"{name}.png")
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  for size in (0, 100, 10_000, 40_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
      with pytest.raises(UserError, match=r"cannot be written to .*File too large.*make room") as error:
        open_split(own(tmp_path), "train")
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_sentence(error.value)
  assert len(open_split(own(tmp_path), "train")) == 2


def test_no_home(monkeypatch):
  """In a container: no HOME, and a user whom no file knows."""
  monkeypatch.delenv("HOME", raising=False)
  monkeypatch.delenv(places.DATA_DIR_VARIABLE, raising=False)

  def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

  monkeypatch.setattr(pwd, "getpwuid", unknown)
  with pytest.raises(DataError, match="this user has none") as error:
    places.data_root("")
  assert_sentence(error.value)


@pytest.mark.parametrize(
  "url", ["http://localhost:1/x", "https://localhost:1/x", "foo://bar/baz", "s3://x/y", "://"]
)
def test_folders_that_are_no_folder(url):
  start = time.monotonic()
  with pytest.raises(UserError) as error:
    bucket.reach(url)
  assert_sentence(error.value)
  assert time.monotonic() - start < 35


def test_the_name_of_a_split_is_no_path(prepared):
  config, _ = prepared

  @cases(20)
  @given(
    st.one_of(
      st.text(max_size=6), st.sampled_from(["../..", "train[:1]", "train+", "+", "all", "train+train", "*"])
    )
  )
  def case(split):
    try:
      assert len(open_split(config, split)) in (3, 6, 9)
      assert set(split.split("+")) <= {"train", "val"}
    except UserError as error:
      assert_sentence(error)

  case()
  assert places.data_root(config.data_dir).exists()
