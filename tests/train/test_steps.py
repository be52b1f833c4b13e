"""The loop alone, with steps of no model: what is dispatched, looked at and stopped, in which order."""

import json
import socket

import jax
import jax.numpy as jnp
import pytest

from jaxseg.errors import UserError
from jaxseg.train import loop, workdir
from jaxseg.train.hooks import Hook


class Recorder(Hook):
  """Writes down what it is told."""

  def __init__(self):
    self.events = []

  def before_step(self, step):
    self.events.append(("dispatch", step))

  def window(self, lines):
    self.events.append(("lines", [step for step, _ in lines]))


def run(in_flight, *, every=1, total=12, bad=None):
  recorder, place = Recorder(), [0]

  def step_fn(state, batch, key):
    place[0] += 1
    return state, {"loss": jnp.float32(float("nan") if place[0] == bad else place[0])}

  feed = iter([([f"image{i}"], None) for i in range(1, total + 1)])
  with jax.transfer_guard("allow"):
    try:
      loop.run_steps(
        step_fn, None, None, feed, [recorder], start=0, total=total, every=every, in_flight=in_flight
      )
    finally:
      recorder.shown = [step for name, steps in recorder.events if name == "lines" for step in steps]
  return recorder


@pytest.fixture(autouse=True)
def plain(monkeypatch):
  """These steps make their scalars on the host, which the guard of the real ones forbids."""
  monkeypatch.setattr(jax, "transfer_guard", lambda _: __import__("contextlib").nullcontext())


@pytest.mark.parametrize("in_flight", [0, 1, 10])
def test_line_n_comes_before_step_n_plus_in_flight_plus_1(in_flight):
  events = run(in_flight, total=14).events
  for step in range(1, 14 - in_flight):
    if step + in_flight + 1 <= 14:
      assert events.index(("lines", [step])) < events.index(("dispatch", step + in_flight + 1))
  if in_flight:  # and not earlier: the steps are really in flight
    assert events.index(("lines", [1])) > events.index(("dispatch", in_flight + 1))


@pytest.mark.parametrize("in_flight", [0, 1, 10])
def test_a_window_has_its_own_steps(in_flight):
  shown = [steps for name, steps in run(in_flight, every=4).events if name == "lines"]
  assert shown[:2] == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("in_flight", [0, 1, 10])
def test_nan_at_step_n_stops_at_n_with_its_images(in_flight):
  with pytest.raises(loop.NotFinite) as stopped:
    run(in_flight, bad=3)
  assert (stopped.value.step, list(stopped.value.ids)) == (3, ["image3"])


def test_a_workdir_has_one_owner(tmp_path):
  with workdir.owned(tmp_path):
    with pytest.raises(UserError, match=r"is in use by another run \(process \d+ on host"):
      with workdir.owned(tmp_path):
        pass
    assert (tmp_path / workdir.LOCK).exists(), "the first is unharmed"
  assert not (tmp_path / workdir.LOCK).exists()
  text = json.dumps({"host": socket.gethostname(), "pid": 999999999, "time": 0})
  (tmp_path / workdir.LOCK).write_text(text)
  with workdir.owned(tmp_path):  # of a process that is gone
    pass


def test_what_may_change_on_resume(tmp_path):
  config = {"seed": 0, "total_steps": 5, "data": {"workers": 1, "crop_size": [64, 64]}}
  before = {"config": config, "classes": ["a", "b"], "preprocess": {"mean": [1.0]}}
  now = {
    **before,
    "config": {**config, "seed": 1, "total_steps": 9, "data": {**config["data"], "workers": 2}},
  }
  assert workdir.compare(tmp_path, before, now) == ["config.seed 0 → 1"]
  with pytest.raises(UserError, match=r"other class names: class 0 is 'a' \(now 'b'\)"):
    workdir.compare(tmp_path, before, {**before, "classes": ["b", "a"]})
  with pytest.raises(UserError, match=r"other preprocessing: mean \[1.0\] \(now \[2.0\]\)"):
    workdir.compare(tmp_path, before, {**before, "preprocess": {"mean": [2.0]}})


def test_checkpoints_that_are_missing_beside_a_log(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(1, 8)))
  workdir.check_checkpoints(tmp_path, steps=[], every=5)  # killed before its first save
  with pytest.raises(UserError, match="has a log of 7 steps and no checkpoint"):
    workdir.check_checkpoints(tmp_path, steps=[], every=2)
