"""Every JSON that jaxseg reads, with a value of it changed, gone or half written: right, or one sentence.

A workdir's own files are in test_workdir.py, our `config.json` beside weights in tests/pretrained/hostile.
"""

import contextlib
import functools
import json
import pathlib
import shutil
import socket

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.commands import compare
from jaxseg.commands.crf_log import SearchLog
from jaxseg.config import record
from jaxseg.data import DataError, open_split, pascal_context
from jaxseg.errors import UserError
from jaxseg.pretrained import schema
from jaxseg.pretrained.source import open_source
from jaxseg.pretrained.weights import Weights
from jaxseg.train import hooks, loop, workdir
from jaxseg.train.metrics import MetricsLog, read_metrics
from tests.data import miniature, oddities
from tests.hostile.changes import assert_sentence, cases, damages


def ends(read, *, lines=1):
  """What `read` gives; None after a sentence."""
  try:
    return read()
  except UserError as error:
    assert_sentence(error, lines=lines)
    return None


def fresh(source, folder):
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(source, folder)
  return folder


def test_a_run_that_goes_on(run, tmp_path):
  """What train.py reads before it restores: the record, the log, the lock, the history."""
  record_now = record.read(run)

  @cases(25)
  @given(st.sampled_from(["config.json", "metrics.jsonl", "speed.jsonl"]), damages())
  def case(name, change):
    folder = fresh(run, tmp_path / "run")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with contextlib.ExitStack() as stack:
      before = ends(lambda: loop._open_workdir(folder, record_now, stack))
      if before is None:
        return
      changes = workdir.compare(folder, before, record_now)
      for text in changes:
        assert_sentence(UserError(text))
      workdir.say_changes(changes)
      workdir.keep_history(folder, before, step=2)
      workdir.update(folder, record_now)
      every = workdir.save_period(before)
      ends(lambda: workdir.check_checkpoints(folder, steps=[], every=every))
      logs = [MetricsLog(folder, resume_step=2, name=kind) for kind in ("metrics.jsonl", "speed.jsonl")]
      for log in logs:
        log.write(3, {"loss": 1.0})
        log.flush(force=True)
      steps = [line["step"] for line in read_metrics(folder)]
      assert steps == sorted(set(steps)) and steps[-1] == 3
      evaluation = object.__new__(hooks.Evaluation)
      evaluation._read_scores(read_metrics(folder))

  case()


def test_locks(tmp_path, monkeypatch):
  """A lock that no run wrote is no owner."""
  monkeypatch.setattr(workdir, "_STALE_SECONDS", 0.01)
  monkeypatch.setattr(workdir.time, "sleep", lambda _: None)
  mine = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "x", "time": 0.0, "token": "t"}

  @cases(60)
  @given(damages())
  def case(change):
    (tmp_path / workdir.LOCK).write_bytes(change(json.dumps(mine).encode()))

    def own():
      with workdir.owned(tmp_path):
        return True

    ends(own)

  case()


@pytest.mark.parametrize(
  "name", ["eval/report.json", "cost.json", "config.json", "metrics.jsonl", "speed.jsonl"]
)
def test_runs_that_are_compared(run, tmp_path, name):
  sound = compare.read_run(str(run), "sound")
  assert len(compare.table([sound, sound])) == 3

  @cases(6)
  @given(damages())
  def case(change):
    folder = fresh(run, tmp_path / "run")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    other = ends(lambda: compare.read_run(str(folder), "other"))
    if other is not None:
      for line in compare.table([sound, other]):
        assert_sentence(UserError(line))
      values = compare._values([sound, other], compare._notes([sound, other]), [])
      page = compare.render_page("compare.html", values)
      assert "<script>alert" not in page
      compare._examples([sound, other], 0)
      other.classes, ends(lambda: compare._step(other))

  case()


FACTS = {"weights": "abc", "of": 3, "classes": 2, "rule": {"mode": "whole", "scales": [1.0]}}


def test_logs_of_a_search(tmp_path):
  log = SearchLog(tmp_path, FACTS)
  counted = np.array([[5, 1], [0, 9]])
  for image in range(3):
    log.add(image, None, counted)
    log.add(image, (3.0, 40.0, 5.0), counted)
  sound = (tmp_path / "search.jsonl").read_bytes()

  @cases(100)
  @given(damages())
  def case(change):
    (tmp_path / "search.jsonl").write_bytes(change(sound))
    log = ends(lambda: SearchLog(tmp_path, FACTS))
    if log is not None:
      for key in [key for key in log._counts if key[0] in range(3)]:
        assert log.total([key[0]], key[1]).shape == (2, 2)
      log.add(0, None, counted)
      assert ends(lambda: SearchLog(tmp_path, FACTS)) is not None

  case()


TRANSFORMERS = {
  "config.json": {
    "model_type": "segformer", "num_attention_heads": [1, 2, 5, 8], "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2], "hidden_act": "gelu", "id2label": {"0": "wall", "1": "sky"},
  },
  "preprocessor_config.json": {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "resample": 2, "rescale_factor": 1 / 255,
    "size": {"height": 512, "width": 512},
  },
  "model.safetensors.index.json": {
    "metadata": {"total_size": 8}, "weight_map": {"a.weight": "m1.safetensors", "b.weight": "m2.safetensors"},
  },
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_files_beside_weights_of_transformers(tmp_path, name):
  for part, tensor in (("m1", "a.weight"), ("m2", "b.weight")):
    safetensors.numpy.save_file({tensor: np.ones(2, np.float32)}, tmp_path / f"{part}.safetensors")
  for other, values in TRANSFORMERS.items():
    (tmp_path / other).write_text(json.dumps(values))
  sound = (tmp_path / name).read_bytes()
  assert set(open_source(tmp_path).tensors) == {"a.weight", "b.weight"}

  @cases(40)
  @given(damages())
  def case(change):
    (tmp_path / name).write_bytes(change(sound))
    found = ends(lambda: open_source(tmp_path))
    if found is not None:
      assert isinstance(found, Weights) and set(found.tensors) <= {"a.weight", "b.weight"}
      said = found.meta.preprocess
      assert said is None or np.isfinite([*said.mean, *said.std]).all()
      assert found.meta.classes is None or schema.is_names(found.meta.classes)

  case()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder of two pictures, prepared."""
  root = tmp_path_factory.mktemp("prepared")
  for split in ("train", "val"):
    for kind, array in (("images", oddities.IMAGE), ("masks", oddities.LABEL)):
      for name in "abc":
        oddities._save(root / "own" / kind / split / f"{name}.png", array)
  config = miniature.settings(
    "folder", manual_dir=str(root / "own"), data_dir=str(root / "made"), classes=("a", "b", "c")
  )
  return config, {split: len(open_split(config, split)) for split in ("train", "val")}


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_prepared_data(prepared, name):
  config, lengths = prepared
  (path,) = pathlib.Path(config.data_dir).rglob(name)
  sound = path.read_bytes()

  @cases(12)
  @given(damages())
  def case(change):
    path.write_bytes(change(sound))
    try:
      source = ends(lambda: open_split(config, "train"), lines=8)
      if source is not None:
        assert len(source) == lengths["train"], "fewer or more without a word"
        for index in range(len(source)):
          example = ends(lambda index=index: source[index], lines=8)
          assert example is None or np.array_equal(example["label"], oddities.LABEL)
          ends(lambda index=index: source.size(index), lines=8)
    finally:
      path.write_bytes(sound)

  case()
  assert len(open_split(config, "val")) == lengths["val"]


def test_the_masks_of_pascal_context(tmp_path):
  (tmp_path / "JPEGImages").mkdir()
  (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"x")
  image = {"image_id": 1, "phase": "train", "file_name": "a.jpg", "height": 2, "width": 2}
  region = {"image_id": 1, "category_id": 2, "segmentation": {"size": [2, 2], "counts": [0, 4]}}
  content = json.dumps({"images": [image], "annos_segmentation": [region]}).encode()
  find = functools.partial(pascal_context._find_json, epath.Path(tmp_path))

  @cases(80)
  @given(damages())
  def case(change):
    (tmp_path / pascal_context.JSON).write_bytes(change(content))
    try:
      for pair in find()["train"]:
        pascal_context.read(pair)
    except DataError as error:
      assert_sentence(error)

  case()
