"""A workdir used again: whatever changed is refused or named, and no bad step stays behind as good."""

import contextlib
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxseg import config as config_lib
from jaxseg.checkpoint import Checkpoints
from jaxseg.config import keys, record
from jaxseg.data import open_split
from jaxseg.errors import UserError
from jaxseg.train import hooks, loop, workdir
from jaxseg.train.step import TrainState
from tests.data import miniature
from tests.hostile.changes import assert_sentence, cases

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def made(config, classes=("a", "b")):
  palette = np.zeros((len(classes), 3), np.uint8)
  return record.make_record(config, num_classes=len(classes), classes=classes, palette=palette)


def other_value(value):
  """Another value of the same kind, in range or not: what matters is that it differs."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int | float):
    return value + 1
  if isinstance(value, tuple):
    return (*value[:-1], other_value(value[-1])) if value else ("x",)
  return f"{value}x" if isinstance(value, str) else 1


def test_every_changed_value_is_refused_named_or_free_to_change(tmp_path):
  config = config_lib.load(f"{CONFIGS / 'cgnet_m3n21_synthetic'}.py")
  before = made(config)
  seen = {"refused": set(), "named": set(), "free": set()}

  @cases(50)
  @given(st.sampled_from(keys.leaves(config)))
  def case(key):
    copy = config.copy_and_resolve_references()
    group, _, name = key.rpartition(".")
    node = keys.get(copy, group) if group else copy
    with copy.unlocked(), node.ignore_type():
      node[name] = "colour_only" if key == "model.arch" else other_value(node[name])
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    workdir.prepare(tmp_path / "run", before, write=True)
    now = made(copy)
    try:
      workdir.prepare(tmp_path / "run", now, write=True)
      changes = workdir.compare(tmp_path / "run", record.read(tmp_path / "run"), now)
    except UserError as error:
      assert_sentence(error)
      assert record.read(tmp_path / "run") == before, "a config that is refused is not the workdir's"
      seen["refused"].add(key)
      return
    if any(change.startswith(f"config.{key} ") for change in changes):
      seen["named"].add(key)
    else:
      assert re.fullmatch(workdir.MAY_CHANGE, key), f"{key} is taken without a word"
      seen["free"].add(key)
    workdir.keep_history(tmp_path / "run", before, step=3)
    workdir.update(tmp_path / "run", now)
    (line,) = (tmp_path / "run" / workdir.HISTORY).read_text().splitlines()
    assert json.loads(line) == {"until_step": 3, **before} and record.read(tmp_path / "run") == now

  case()
  for key in seen["refused"]:
    assert key.startswith(("model.", "preprocess.")) or key in ("data.multi_label", "data.channels"), key
  assert all(seen.values())


def test_classes_that_are_others_or_in_another_order(tmp_path):
  config = config_lib.load(f"{CONFIGS / 'cgnet_m3n21_synthetic'}.py")
  names = st.lists(st.sampled_from("abcd"), min_size=2, max_size=4, unique=True)

  @cases(25)
  @given(names, names)
  def case(old, new):
    before, now = made(config, tuple(old)), made(config, tuple(new))
    before["model"] = now["model"]  # their number alone would be another model
    try:
      assert workdir.compare(tmp_path, before, now) == []
      assert old == new
    except UserError as error:
      assert_sentence(error)
      assert old != new

  case()


def test_data_whose_files_changed_are_named(tmp_path):
  """As drawn: a picture comes, goes, or is drawn anew between two starts."""

  def picture(name, value):
    for kind, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
      path = tmp_path / "own" / kind / f"{name}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.full(shape, value % 2, np.uint8)).save(path)

  config = miniature.settings(
    "folder", manual_dir=str(tmp_path / "own"), data_dir=str(tmp_path / "made"), classes=("a", "b")
  )

  def state():
    sources = {split: open_split(config, split) for split in ("train", "val")}
    data = {s: {"examples": len(source), "state": source.state} for s, source in sources.items()}
    assert all(re.fullmatch(r"[0-9a-f]{16}", values["state"]) for values in data.values())
    folder = {"data": {"manual_dir": config.manual_dir}}
    return {"config": folder, "classes": [], "preprocess": {}, "data": json.loads(json.dumps(data))}

  for i in range(4):
    picture(f"p{i}", i)
  operation = st.tuples(st.sampled_from(["none", "add", "remove", "redraw"]), st.integers(0, 6))

  @cases(8)
  @given(operation)
  def case(done):
    what, number = done
    before, files = state(), {p.name: p.stat().st_mtime_ns for p in (tmp_path / "own" / "masks").iterdir()}
    if what == "remove" and len(files) > 3:
      for kind in ("images", "masks"):
        (tmp_path / "own" / kind / f"p{number}.png").unlink(missing_ok=True)
    elif what in ("add", "redraw"):
      picture(f"p{number}", number + 1)
    same = files == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "own" / "masks").iterdir()}
    changes = workdir.compare(tmp_path, before, state())
    assert bool(changes) == (not same), (done, changes)
    for text in changes:
      assert "data" in text and "split" in text
      assert_sentence(UserError(text))

  case()


class Saves(Checkpoints):
  """The checkpoints of a run, as numbers."""

  def __init__(self):
    self.kept, self.aside = [], []

  def save(self, step, state):
    self.kept.append(step)

  def steps(self):
    return list(self.kept)

  def set_aside(self, step):
    self.kept.remove(step)
    self.aside.append(step)

  def wait(self):
    pass

  def check(self):
    pass


def test_what_a_bad_step_began_from_is_no_good_checkpoint(monkeypatch):
  """Parameters go bad in a drawn update; the loss shows it one step later, or the flag at once."""
  monkeypatch.setattr(jax, "transfer_guard", lambda _: contextlib.nullcontext())

  @cases(40)
  @given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 3), st.integers(1, 4), st.booleans())
  def case(bad, every_save, in_flight, every_log, flagged):
    """`bad`: the first step whose loss is not finite; its parameters were spoilt by the step before."""
    place, saves = [0], Saves()

    def step_fn(state, batch, key):
      place[0] += 1
      scalars = {"loss": jnp.float32(float("nan") if place[0] >= bad else 1.0)}
      if flagged:
        scalars["params_finite"] = jnp.float32(place[0] < bad - 1)
      return state, scalars

    config = ml_collections.ConfigDict(
      {"total_steps": 14, "checkpoint": {"every_steps": every_save}, "eval": {"every_steps": 0}}
    )
    saving = hooks.Saving(saves, config, start=0)
    feed = iter([([f"image{i}"], None) for i in range(1, 15)])
    with pytest.raises(loop.NotFinite) as stopped:
      loop.run_steps(
        step_fn,
        object.__new__(TrainState),
        None,
        feed,
        [saving],
        start=0,
        total=14,
        every=every_log,
        in_flight=in_flight,
      )
    shown = max(bad - 1, 1) if flagged else bad
    assert stopped.value.step == shown and list(stopped.value.ids) == [f"image{shown}"]
    text = loop._advice(stopped.value, saves, 0)
    assert_sentence(UserError(text))
    # Good is what a finite forward pass came after: the parameters after step bad - 1 are spoilt.
    assert all(step < max(bad - 1, 1) for step in saves.kept), (saves.kept, bad)
    if "last good checkpoint: step" in text:
      assert f"step {saves.kept[-1]}." in text

  case()


def test_a_log_beside_checkpoints_that_are_gone(tmp_path):
  """Never from step 0 without a word where two saves should be there; the log is left as it is."""

  @cases(50)
  @given(st.integers(0, 60), st.integers(0, 20), st.booleans())
  def case(logged, every, there):
    lines = "".join(f'{{"step": {i}, "loss": 1.0}}\n' for i in range(1, logged + 1))
    (tmp_path / "metrics.jsonl").write_text(lines)
    try:
      workdir.check_checkpoints(tmp_path, steps=[1] if there else [], every=every)
      assert there or logged <= 2 * max(every, 1)
    except UserError as error:
      assert_sentence(error)
      assert not there and logged > 2 * max(every, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == lines

  case()
