"""SIGTERM and kill -9: what a run does when it is told to go, and what it has lost when it was not."""

import os

import pytest

from jaxseg import config as config_lib
from jaxseg.train import loop
from jaxseg.train.distributed import Preempted
from jaxseg.train.metrics import read_metrics
from tests.train import kills
from tests.train.kills import ROOT, Topology

TINY = str(ROOT / "configs" / "colour_only_synthetic.py:smoke")
STEPS = ("total_steps=6", "eval.every_steps=3", "checkpoint.every_steps=100")
SMALL = ("--config.batch_size=4", "--config.eval.batch_size=4", "--config.log.panel_every_steps=0")
CGNET = ("--config=configs/cgnet_m3n21_synthetic.py:smoke", "--config.mesh.devices=0", *SMALL)
# All blocks of a SegFormer at its recipe's optimizer and rate. Of the reduced models, its losses part least
# where sums are formed in another order: on other devices a lost or repeated step would show.
SEGFORMER = (
  "--config=configs/segformer_cityscapes.py:b0,smoke", "--config.mesh.devices=0",
  "--config.model.decoder.width=64", *SMALL,
)  # fmt: skip
# One kill of each run in CI, JAXSEG_KILLS=20 for more.
KILLS = int(os.environ.get("JAXSEG_KILLS", "1"))
TOTAL = max(24, 3 * KILLS)
EVERY = 3


def load(*changes):
  return config_lib.load(TINY, overrides=[tuple(c.split("=", 1)) for c in changes])


class Told:
  """Is told to go at the n-th question, as if by SIGTERM."""

  def __init__(self, question):
    self._question, self._asked = question, 0

  def reached(self, step):
    self._asked += 1
    return self._question is not None and self._asked >= self._question


def train(directory, question, *changes):
  return loop.train(load(*STEPS, *changes), directory, preemption=Told(question))


def test_saved_at_the_notice_wherever_it_comes(tmp_path):
  whole = train(tmp_path / "whole", None)
  lines = read_metrics(tmp_path / "whole")
  parts, stops = tmp_path / "parts", []
  for question in range(2, 12):
    try:
      report = train(parts, question)
      break
    except Preempted as told:
      stops.append(int(str(told).split("at step ")[1].split(";")[0]))
      assert str(told) == f"preempted at step {stops[-1]}; saved; the same command goes on"
      assert (parts / "checkpoints" / str(stops[-1])).is_dir()
  assert stops == sorted(stops) and stops
  assert read_metrics(parts) == lines
  assert (report.matrix == whole.matrix).all()


def words(*model):
  return (*model, f"--config.total_steps={TOTAL}", f"--config.checkpoint.every_steps={EVERY}",
    f"--config.eval.every_steps={TOTAL // 2}")  # fmt: skip


def uninterrupted(workdir, topology, *model):
  """The log of a run that nobody kills."""
  codes = kills.finish(kills.start(workdir, topology, words(*model)))
  assert codes == [0] * topology.processes, kills.said(workdir)
  return kills.lines_of(workdir)


def check_order(lines):
  assert [line["step"] for line in lines] == list(range(1, TOTAL + 1)), "each step once, in order"


# One process is killed in tests/commands, too.
@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.full), 2])
def test_killed_and_resumed_on_the_same_processes_is_equal_to_the_bit(tmp_path, processes):
  topology = Topology(processes, 1)
  whole = uninterrupted(tmp_path / "whole", topology, *CGNET)
  kills.kill_many(
    tmp_path / "run",
    words(*CGNET),
    topologies=[topology] * (KILLS + 1),
    total=TOTAL,
    every=EVERY,
    seed=6,
    damage=True,
    tell=print,
  )
  lines = kills.lines_of(tmp_path / "run")
  check_order(lines)
  assert lines == whole


@pytest.mark.full
def test_killed_and_resumed_on_other_devices_is_equal_to_1e_5(tmp_path):
  whole = uninterrupted(tmp_path / "whole", Topology(2, 1), *SEGFORMER)
  others = [Topology(1, 1), Topology(2, 2), Topology(1, 2)]
  # Every other start on another number of devices.
  topologies = [others[i // 2 % 3] if i % 2 else Topology(2, 1) for i in range(KILLS + 1)]
  kills.kill_many(
    tmp_path / "run", words(*SEGFORMER), topologies=topologies, total=TOTAL, every=EVERY, seed=4, tell=print
  )
  lines = kills.lines_of(tmp_path / "run")
  check_order(lines)
  differences = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(lines, whole, strict=True)]
  print(f"largest relative difference of a loss {max(differences):.2e}, of the last {differences[-1]:.2e}")
  assert differences[-1] <= 1e-5
