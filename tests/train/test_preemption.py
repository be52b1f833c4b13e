"""SIGTERM and kill -9: what a run does when it is told to go, and what it has lost when it was not."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from jaxseg.train.exits import RESTART, Restart
from jaxseg.train.preemption import Preempted, Preemption

from jaxseg.train import config as config_lib
from jaxseg.train import loop
from jaxseg.train.metrics import read_metrics
from tests.train import kills
from tests.train.kills import ROOT, Topology

TINY = str(ROOT / "configs" / "colour_only_synthetic.py:smoke")
STEPS = ("total_steps=6", "eval.every_steps=3", "checkpoint.every_steps=100")
# All blocks of a SegFormer at its recipe's optimizer and rate. Of the reduced models, its losses part least
# where sums are formed in another order: a lost or repeated step would show.
SEGFORMER = (
  "--config=configs/segformer_cityscapes.py:b0,smoke", "--config.batch_size=4", "--config.eval.batch_size=4",
  "--config.log.panel_every_steps=0", "--config.mesh.devices=0", "--config.model.decoder.width=64",
)  # fmt: skip
# One kill of each run in CI, JAXSEG_KILLS=20 for more.
KILLS = int(os.environ.get("JAXSEG_KILLS", "1"))
TOTAL = max(24, 3 * KILLS)
EVERY = 3


def load(*changes):
  return config_lib.load(TINY, overrides=[tuple(c.split("=", 1)) for c in changes])


class Told(Preemption):
  """Is told to go at the n-th question, as if by SIGTERM."""

  def __init__(self, question):
    super().__init__()
    self._question = question

  def reached(self):
    self._told = self._told or self._asked + 1 == self._question
    return super().reached()


def train(monkeypatch, directory, question, *changes):
  monkeypatch.setattr(loop, "Preemption", lambda: Told(question))
  return loop.train(load(*STEPS, *changes), directory)


def test_saved_at_the_notice_wherever_it_comes(tmp_path, monkeypatch):
  whole = train(monkeypatch, tmp_path / "whole", None)
  lines = read_metrics(tmp_path / "whole")
  # A question after each step, before each evaluation, and after each of its two batches.
  stops, parts = [], tmp_path / "parts"
  for question in range(1, 9):
    try:
      report = train(monkeypatch, parts, question)
      break
    except Preempted as told:
      assert isinstance(told, Restart)
      stops.append(read_metrics(parts)[-1]["step"])
      assert str(told) == f"preempted at step {stops[-1]}; saved; the same command goes on"
      assert (parts / "checkpoints" / str(stops[-1])).is_dir()
  assert stops == [1, 3, 3, 4, 6], "before an evaluation, in one, and after one"
  assert read_metrics(parts) == lines
  assert (report.matrix == whole.matrix).all()
  assert not (parts / "damaged_checkpoints").exists()


def test_an_evaluation_that_was_cut_short_is_made_up_for(tmp_path, monkeypatch):
  """Step 3 is saved before its evaluation; killed there, the run owes the scores and nothing else."""
  train(monkeypatch, tmp_path / "whole", None)
  with pytest.raises(Preempted, match="preempted at step 3; saved"):
    train(monkeypatch, tmp_path / "cut", 5)  # in the first batch of the evaluation
  assert [line["step"] for line in read_metrics(tmp_path / "cut")] == [1, 2, 3]
  assert "mIoU" not in read_metrics(tmp_path / "cut")[-1]
  train(monkeypatch, tmp_path / "cut", None)
  assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")


def test_the_importers_handler_comes_back():
  heard = []
  before = signal.signal(signal.SIGTERM, lambda *_: heard.append("importer"))
  try:
    with Preemption() as preemption:
      preemption.unsaved()
      assert not preemption.reached()
      for _ in range(2):  # launchers like to say it twice
        signal.raise_signal(signal.SIGTERM)
      deadline = time.monotonic() + 60
      while not preemption.reached():
        assert time.monotonic() < deadline
    assert heard == []
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["importer"]
  finally:
    signal.signal(signal.SIGTERM, before)
  elsewhere = []
  thread = threading.Thread(target=lambda: elsewhere.append(_enter_and_ask()))
  thread.start()
  thread.join()
  assert elsewhere == [False], "only the main thread may listen; others train all the same"
  assert signal.getsignal(signal.SIGTERM) == before


def _enter_and_ask():
  with Preemption() as preemption:
    return preemption.reached()


_STARTING = """
import signal, sys, time
from jaxseg.train.preemption import Preemption

with Preemption():
  if "deaf" in sys.argv:
    sys.stderr.close()
  signal.raise_signal(signal.SIGTERM)
  time.sleep(60)
"""


@pytest.mark.parametrize("word", ["", "deaf"])
def test_told_before_it_is_known_where_the_run_goes_on(word):
  """The run may be at step 8 on the disk: nothing is said of the first step; a closed stderr is no reason
  to stay.
  """
  done = subprocess.run([sys.executable, "-c", _STARTING, word], cwd=ROOT, capture_output=True, timeout=300)
  assert done.returncode == RESTART
  said = "" if word else "preempted while starting; nothing was lost; the same command goes on\n"
  assert done.stderr.decode() == said


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("jobs") / "whole"
  codes = kills.finish(kills.start(workdir, Topology(2, 1), words()))
  assert codes == [0, 0], kills.said(workdir)
  return kills.lines_of(workdir)


def words():
  return (*SEGFORMER, f"--config.total_steps={TOTAL}", f"--config.checkpoint.every_steps={EVERY}",
    f"--config.eval.every_steps={TOTAL // 2}")  # fmt: skip


def check_order(lines):
  assert [line["step"] for line in lines] == list(range(1, TOTAL + 1)), "each step once, in order"


@pytest.mark.slow
def test_killed_and_resumed_on_the_same_processes_is_equal_to_the_bit(uninterrupted, tmp_path):
  kills.kill_many(
    tmp_path / "run",
    words(),
    topologies=[Topology(2, 1)] * (KILLS + 1),
    total=TOTAL,
    every=EVERY,
    seed=6,
    damage=True,
    tell=print,
  )
  lines = kills.lines_of(tmp_path / "run")
  check_order(lines)
  assert lines == uninterrupted


@pytest.mark.slow
def test_killed_and_resumed_on_other_devices_is_equal_to_1e_5(uninterrupted, tmp_path):
  others = [Topology(1, 1), Topology(2, 2), Topology(1, 2)]
  # Every other start on another number of devices.
  topologies = [others[i // 2 % 3] if i % 2 else Topology(2, 1) for i in range(KILLS + 1)]
  kills.kill_many(
    tmp_path / "run", words(), topologies=topologies, total=TOTAL, every=EVERY, seed=4, tell=print
  )
  lines = kills.lines_of(tmp_path / "run")
  check_order(lines)
  differences = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(lines, uninterrupted, strict=True)]
  print(f"largest relative difference of a loss {max(differences):.2e}, of the last {differences[-1]:.2e}")
  assert differences[-1] <= 1e-5
