"""Trackers beside TensorBoard: what they are told, offline; and that a run outlives their errors."""

import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import types

import numpy as np
import pytest

from jaxseg import config as config_lib
from jaxseg.errors import UserError
from jaxseg.train.trackers import Trackers, open_trackers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "colour_only_synthetic.py:smoke")

_RUNS = """
import sys
from jaxseg import config as config_lib
from jaxseg.train import loop
for total in (2, 4):
  changes = [("log.trackers", "wandb,trackio"), ("total_steps", str(total)), ("eval.every_steps", "2"),
             ("optimizer.schedule.total_steps", "4"), ("log.panel_every_steps", "4")]
  loop.train(config_lib.load(sys.argv[1], overrides=changes), sys.argv[2])
"""


def test_a_run_that_goes_on_is_one_run_offline(tmp_path):
  env = os.environ | {
    "WANDB_MODE": "offline",
    "TRACKIO_DIR": str(tmp_path / "trackio"),
    "HF_HUB_OFFLINE": "1",
    "WANDB_DIR": str(tmp_path),
    "WANDB_CACHE_DIR": str(tmp_path / "cache"),
    "WANDB_CONFIG_DIR": str(tmp_path / "settings"),
    "WANDB_DATA_DIR": str(tmp_path / "data"),
  }
  words = [sys.executable, "-c", _RUNS, TINY, str(tmp_path / "run")]
  done = subprocess.run(words, env=env, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "left out" not in done.stderr, done.stderr
  run_id = (tmp_path / "run" / "tracker_run_id").read_text().strip()
  folders = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))
  assert len(folders) >= 1
  stored = b"".join(file.read_bytes() for folder in folders for file in folder.glob("*.wandb"))
  for name in (b"train/loss", b"eval/mIoU", b"speed/", b"eval/predictions", b"recipe"):
    assert name in stored, name
  (file,) = (tmp_path / "trackio").glob("jaxseg*.db")
  with sqlite3.connect(file) as database:
    rows = database.execute("select run_name, step, metrics from metrics").fetchall()
  assert {name for name, _, _ in rows} == {f"run-{run_id}"}
  steps = {step for _, step, metrics in rows if "train/loss" in json.loads(metrics)}
  assert steps == {1, 2, 3, 4}
  assert {step for _, step, metrics in rows if "eval/mIoU" in json.loads(metrics)} == {2, 4}


class _Log:
  def __init__(self, broken=False):
    self.seen, self.broken = [], broken

  def __getattr__(self, name):
    def call(*args, **named):
      self.seen.append(name)
      if self.broken:
        raise ConnectionError("gone")

    return call


def test_a_tracker_that_fails_is_left_out(capsys):
  board, good, bad = _Log(), _Log(), _Log(broken=True)
  trackers = Trackers(board, {"bad": bad, "good": good})
  trackers.scalars(1, {"loss": 0.5})
  trackers.text("recipe", "x")
  trackers.image(1, "eval/predictions", np.zeros((2, 2, 3), np.uint8))
  trackers.close()
  assert board.seen == good.seen == ["scalars", "text", "image", "close"] and bad.seen == ["scalars"]
  said = capsys.readouterr().err
  assert said.count("bad is left out from now on (ConnectionError: gone)") == 1
  with pytest.raises(ConnectionError):  # the board's own errors end a run, as before
    Trackers(_Log(broken=True), {}).scalars(1, {"loss": 0.5})


def test_what_does_not_start_or_is_none(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"config.log.trackers.*wandbb"):
    config_lib.load(TINY, overrides=[("log.trackers", "wandbb")])
  config = config_lib.load(TINY, overrides=[("log.trackers", "wandb")])
  assert open_trackers(config, tmp_path, active=False) == {}

  def init(**_):
    raise RuntimeError("no API key\nconfigured")

  module = types.ModuleType("wandb")
  module.init, module.Settings = init, dict
  monkeypatch.setitem(sys.modules, "wandb", module)
  with pytest.raises(
    UserError, match=r"wandb does not start \(RuntimeError: no API key configured\); log in"
  ):
    open_trackers(config, tmp_path)
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"pip install 'jaxseg\[wandb\]' brings it"):
    open_trackers(config, tmp_path)
