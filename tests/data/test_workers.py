"""Worker processes: the same batches to the bit, no JAX backend, errors arrive, an end with their parent."""

import itertools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxseg import data, sharding
from jaxseg.data import DataError, pipeline, workers
from jaxseg.data.transforms import make_rule
from tests.data import miniature

RULE = make_rule(crop_size=(16, 16), scale_range=(1.0, 1.0), scale_step=0.0, flip=0.5)


@pytest.fixture
def camvid(tmp_path):
  """Three images of a folder, prepared: records on disk."""
  miniature.camvid(tmp_path / "source", counts=(("train", 3), ("val", 2)))
  return miniature.settings(
    "camvid", manual_dir=str(tmp_path / "source"), data_dir=str(tmp_path / "prepared"), crop_size=(16, 16)
  )


def _take(config, count, *, start_step=0, **more):
  batches = data.train_batches(config, batch_size=4, seed=7, start_step=start_step, **more)
  try:
    return list(itertools.islice(batches, count))
  finally:
    batches.close()


def _assert_equal(batches, others):
  assert len(batches) == len(others) > 0
  for batch, other in zip(batches, others, strict=True):
    assert set(batch) == set(other)
    for name in batch:
      assert batch[name].dtype == other[name].dtype
      np.testing.assert_array_equal(batch[name], other[name])


def test_equal_to_the_bit_whatever_the_number_and_the_start(camvid):
  expected = _take(camvid, 7)
  source = data.open_split(camvid, "train")
  camvid.workers = 3
  _assert_equal(_take(camvid, 7, source=source), expected)
  camvid.workers = 1
  _assert_equal(_take(camvid, 2, start_step=5, source=source), expected[5:])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and other systems have no glibc")
@pytest.mark.parametrize("own", [None, "glibc.malloc.hugetlb=1"])
def test_workers_keep_freed_memory_and_ones_own_choice_stands(camvid, monkeypatch, own):
  """Else a third of their time is touching fresh pages; the program's own environment is as it was."""
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  if own:
    monkeypatch.setenv("GLIBC_TUNABLES", own)
  camvid.workers = 2
  batches = data.train_batches(camvid, batch_size=4, seed=7, start_step=0)
  next(batches)
  tunables = {
    variable.removeprefix("GLIBC_TUNABLES=")
    for child in multiprocessing.active_children()
    for variable in pathlib.Path(f"/proc/{child.pid}/environ").read_text().split("\0")
    if variable.startswith("GLIBC_TUNABLES=")
  }
  assert len(multiprocessing.active_children()) >= 2
  batches.close()
  assert len(tunables) == 1 and (own or "mmap_threshold") in tunables.pop()
  assert os.environ.get("GLIBC_TUNABLES") == own


def test_all_sources_pickle(camvid):
  for config in (camvid, miniature.settings("synthetic"), miniature.settings("synthetic_classes")):
    source = data.open_split(config, "train+val")
    again = pickle.loads(pickle.dumps(source))
    assert len(again) == len(source)
    for index in (0, len(source) - 1):
      assert again[index]["id"] == source[index]["id"]
      np.testing.assert_array_equal(again[index]["image"], source[index]["image"])


class Probe:
  """A source that says in which process it is read, and whether JAX has a backend there."""

  def __len__(self):
    return 4

  def __getitem__(self, index):
    # Only before a backend is started can the number of its devices be chosen.
    try:
      jax.config.update("jax_num_cpu_devices", 3)
      started = False
    except RuntimeError:  # "must be updated before backends are initialized"
      started = True
    label = np.full((16, 16), started, np.uint8)
    image = np.zeros((16, 16, 3), np.uint8)
    return {"image": image, "label": label, "id": f"{os.getpid()} {os.environ.get('JAX_PLATFORMS')}"}


class Fails(Probe):
  """A source whose disk is gone."""

  def __getitem__(self, index):
    raise DataError("the disk is gone")


def test_workers_are_processes_without_a_backend():
  jax.devices()  # here there is one
  batches = pipeline.batches(Probe(), RULE, batch_size=2, workers=2)
  first = [next(batches) for _ in range(2)]
  processes = {str(name).split()[0] for batch in first for name in batch["id"]}
  assert len(processes) == 2 and str(os.getpid()) not in processes
  assert not any(batch["label"].any() for batch in first)
  assert {str(name).split()[1] for batch in first for name in batch["id"]} == {"cpu"}
  batches.close()
  deadline = time.monotonic() + 20
  while any(map(_alive, map(int, processes))) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(_alive, map(int, processes)))


def test_errors_arrive():
  batches = pipeline.batches(Fails(), RULE, batch_size=2, workers=1)
  with pytest.raises(DataError, match="the disk is gone"):
    next(batches)


def test_own_sources_need_no_names():
  examples = [
    {"image": np.full((16, 16, 3), i, np.uint8), "label": np.zeros((16, 16), np.uint8)} for i in range(4)
  ]
  batch = next(pipeline.batches(examples, RULE, batch_size=4, workers=0))
  assert sorted(batch["id"]) == ["0", "1", "2", "3"]
  assert [int(name) for name in batch["id"]] == batch["image"][:, 0, 0, 0].tolist()
  with pytest.raises(DataError, match="is empty"):
    pipeline.batches([], RULE, batch_size=4, workers=0)


def test_how_many(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
  assert workers.worker_count(-1) == 3 and workers.worker_count(0) == 0 and workers.worker_count(5) == 5
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(240)))
  assert workers.worker_count(-1) == workers.MOST_AUTOMATIC
  for wrong in (-2, 100_000):
    with pytest.raises(DataError, match=f"data.workers is {wrong}; expected -1"):
      workers.worker_count(wrong)


PROGRAM = """
import sys
from tests.data import miniature
from jaxseg import data

if __name__ == "__main__":
  batches = data.train_batches(miniature.settings("synthetic", workers=2), batch_size=2, seed=0, start_step=0)
  next(batches), next(batches)
  import multiprocessing
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  sys.stdin.read()
"""


def _alive(pid: int) -> bool:
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except (FileNotFoundError, ProcessLookupError):
    return False
  return state != "Z"


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)
  command = [sys.executable, str(path)]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 2 and all(map(_alive, pids))
    os.kill(pids[0], signal.SIGTERM)  # a scheduler's, which reaches all: no reason to end
    time.sleep(0.2)
    assert all(map(_alive, pids))
    program.kill()
  deadline = time.monotonic() + 10
  while any(map(_alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(_alive, pids))


def test_a_program_without_a_guard_is_told(monkeypatch):
  class Worker:
    daemon = True

  monkeypatch.setattr(multiprocessing, "current_process", Worker)
  with pytest.raises(DataError, match='below `if __name__ == "__main__":`'):
    data.train_batches(miniature.settings("synthetic", workers=2), batch_size=2, seed=0, start_step=0)


def test_a_small_shared_memory_is_not_used(camvid, monkeypatch):
  expected = _take(camvid, 2)
  monkeypatch.setattr(workers, "_fits_shared_memory", lambda needed: False)
  camvid.workers = 1
  batches = _take(camvid, 2)
  assert type(batches[0]["image"]) is np.ndarray
  _assert_equal(batches, expected)


def test_a_damaged_shard_names_file_and_remedy(camvid):
  source = data.open_split(camvid, "train")
  (shard,) = pathlib.Path(camvid.data_dir).rglob("camvid-train*.array_record*")
  content = bytearray(shard.read_bytes())
  content[200:-200] = bytes(len(content) - 400)
  shard.write_bytes(content)
  source = pickle.loads(pickle.dumps(source))  # opened anew
  with pytest.raises(DataError, match=rf"{shard.name} cannot be read .*; delete .* and it is prepared again"):
    [source[i] for i in range(len(source))]


def test_a_source_that_changes_is_not_prepared_again(camvid, tmp_path, capsys):
  source = data.open_split(camvid, "train")
  capsys.readouterr()
  miniature.write_pair(tmp_path / "source/train/new.png", tmp_path / "source/trainannot/new.png", seed=9)
  _take(camvid, 2, source=source)
  assert "preparing" not in capsys.readouterr().out
  assert len(data.open_split(camvid, "train")) == 4  # the next run's


def test_feed_to_the_devices(camvid):
  mesh = sharding.make_mesh()
  expected = _take(camvid, 5)
  made = []

  def batches():
    for batch in expected:
      made.append(1)
      yield batch

  with data.prefetch_to_devices(batches(), mesh, ahead=2) as feed:
    names, batch = next(feed)
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 3, "one is with the reader, two are ahead"
    assert names == list(expected[0]["id"]) and "id" not in batch
    assert batch["label"].dtype == np.uint8 and isinstance(batch["label"], jax.Array)
    rest = list(feed)
    assert [names for names, _ in rest] == [list(batch["id"]) for batch in expected[1:]]
    for (_, batch), other in zip(rest, expected[1:], strict=True):
      np.testing.assert_array_equal(batch["image"], other["image"])
    with pytest.raises(StopIteration):
      next(feed)


def test_feed_measures_the_wait_and_passes_errors_on():
  mesh = sharding.make_mesh()
  batch = {"image": np.zeros((1, 4, 4, 3), np.uint8), "id": ["a"]}

  def slow():
    yield batch
    time.sleep(0.3)
    yield batch
    raise DataError("the disk is gone")

  feed = data.prefetch_to_devices(slow(), mesh)
  next(feed)
  before = feed.wait
  next(feed)
  assert 0.2 < feed.wait - before < 5
  for _ in range(2):
    with pytest.raises((DataError, StopIteration)):
      next(feed)
  feed.close()
  with pytest.raises(ValueError, match="ahead is 0"):
    data.prefetch_to_devices([], mesh, ahead=0)
