"""What is scored, by which weights and with which sizes: known, or said, before anything is compiled."""

import argparse
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxseg
from jaxseg import config as config_lib
from jaxseg.checkpoint import Checkpoints
from jaxseg.commands import target
from jaxseg.config import keys
from jaxseg.data.source import DatasetInfo
from jaxseg.errors import UserError
from jaxseg.evaluation import InferenceRule
from jaxseg.evaluation.canvases import LEAST_SIDE, MOST_PIXELS, check_sizes
from jaxseg.train import hooks, results
from jaxseg.train.step import TrainState
from tests.hostile.changes import assert_sentence, cases

sides = st.one_of(st.integers(1, 200), st.sampled_from([31, 32, 33, 5000]))


def test_sizes_that_no_network_takes():
  """Refused exactly where the network refuses the picture, or where no device would hold it."""
  model = jaxseg.create_model("cgnet_m3n21", num_classes=2, encoder={"num_blocks": (1, 1)})

  @functools.cache
  def takes(height, width):
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    try:
      jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
      return True
    except ValueError as error:
      assert_sentence(error)
      return False

  assert takes(LEAST_SIDE, 200) and not takes(LEAST_SIDE - 1, 200)

  @cases(60)
  @given(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    st.sampled_from([(1.0,), (0.5, 1.0), (0.25,), (2.0,), (1e9,), (1e-9,)]),
    st.sampled_from([0, 0, 32, 48, 1_000_000]),
    st.sampled_from(["pad", "resize"]),
    st.sampled_from([(), (), (64, 40), (40, 20), (100_000, 100_000)]),
    st.sampled_from([0, 0, 1, 16, 32, 65]),
  )
  def case(sizes, scales, multiple, how, resize, crop):
    window = dict(mode="slide", crop_size=(crop, crop), stride=(max(crop // 2, 1),) * 2) if crop else {}
    names = [f"picture{i}" for i in range(len(sizes))]
    try:
      rule = InferenceRule(scales=scales, multiple=multiple, multiple_rule=how, resize=resize, **window)
    except UserError as error:
      assert_sentence(error)
      return
    fed = []
    for height, width in (rule.extent(rule.resized(size, scale)) for size in sizes for scale in scales):
      fed.append((min(height, crop), min(width, crop)) if crop else (height, width))
    large = [not crop and height * width > MOST_PIXELS for height, width in fed]
    good = all(not big and takes(*size) for size, big in zip(fed, large, strict=True))
    try:
      check_sizes(rule, sizes, names=names, split="val")
      assert good, fed
    except UserError as error:
      assert_sentence(error)
      assert not good, fed
      assert "config.eval." in str(error)
      assert any(name in str(error) for name in names) or "crop_size" in str(error)

  case()


def test_classes_under_other_names_or_in_another_order():
  words = st.lists(
    st.sampled_from(["road", "Road", "sky", "car", "\x1b[31mcar", "x"]), min_size=1, max_size=4, unique=True
  )

  network = jaxseg.create_model("cgnet_m3n21", num_classes=2)

  @cases(60)
  @given(words, words, st.booleans(), st.booleans())
  def case(trained, said, unknown, allowed):
    palette = np.zeros((len(said), 3), np.uint8)
    info = DatasetInfo(name="own", classes=tuple(said), palette=palette)
    model = target.TrainedModel(
      "run", network, {}, jaxseg.types.Preprocess(), len(trained), classes=() if unknown else tuple(trained)
    )
    good = len(trained) == len(said) and (unknown or allowed or trained == said)
    try:
      target.check_classes(model, info, other_names=allowed)
      assert good
    except UserError as error:
      assert_sentence(error)
      assert not good

  case()


def test_preprocessing_that_would_have_no_effect(run):
  config = config_lib.load("colour_only_synthetic:smoke", overrides=[])
  fields = [key for key in keys.leaves(config) if key.startswith("preprocess.")]
  assert fields

  @cases(10)
  @given(st.sampled_from(fields), st.sampled_from(["(0,0,0)", "rgb", "nan", ""]), st.booleans())
  def case(key, value, by_source):
    flags = argparse.Namespace(workdir=None, source=None, config=None, split=None)
    setattr(flags, "source" if by_source else "workdir", str(run))
    with pytest.raises(UserError, match=f"config.{key} would have no effect") as error:
      target.choose_config(flags, [(key, value)])
    assert_sentence(error.value)

  case()


def test_the_step_is_that_of_the_weights(run, tmp_path):
  """While a run saves, removes and damages its checkpoints, what is read says which step it is."""
  folder = tmp_path / "run"
  values = {}
  for step in (1, 2):
    subject = target.from_workdir(run, step=str(step))
    assert subject.step == step
    values[step] = jax.tree.leaves(subject.variables)
  assert any((a != b).any() for a, b in zip(values[1], values[2], strict=True))

  @cases(15)
  @given(
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(["latest", "best", "1", "2"]),
  )
  def case(removed, damaged, asked):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    if removed:
      shutil.rmtree(folder / "checkpoints" / str(removed))
    if damaged and damaged != removed:
      for path in (folder / "checkpoints" / str(damaged)).rglob("*"):
        if path.is_file():
          path.write_bytes(path.read_bytes()[:-1])
    lost = {removed, damaged}
    left = [step for step in (1, 2) if step not in lost]
    try:
      subject = target.from_workdir(folder, step=asked)
    except UserError as error:
      assert_sentence(error)
      assert not left if asked == "latest" else asked != "best" and int(asked) in lost
      return
    assert subject.step == (
      results.step_of_best(run) if asked == "best" else max(left) if asked == "latest" else int(asked)
    )
    for found, wanted in zip(jax.tree.leaves(subject.variables), values[subject.step], strict=True):
      np.testing.assert_array_equal(found, wanted)

  case()


class Scores:
  """A report that is one number."""

  def __init__(self, score):
    self.score = score

  def scalars(self):
    return {"mIoU": self.score}


class Nothing(TrainState):
  """A state without parameters."""

  @property
  def eval_variables(self):
    return {}


class Silent:
  """What an evaluation tells about itself, to nobody."""

  def __getattr__(self, name):
    return lambda *arguments, **more: None


def test_a_worse_step_never_replaces_the_best(tmp_path):
  """Also where a restart finds a log without its scores, or a damaged one."""
  changes = [("eval.every_steps", "1"), ("total_steps", "99")]
  config = config_lib.load("colour_only_synthetic:smoke", overrides=changes)

  @cases(60)
  @given(
    st.lists(st.integers(0, 9), min_size=2, max_size=6),
    st.integers(1, 5),
    st.lists(st.booleans(), min_size=6),
  )
  def case(scores, restart, lost):
    shutil.rmtree(tmp_path / "best", ignore_errors=True)
    (tmp_path / "best").mkdir()
    log = tmp_path / "metrics.jsonl"
    log.write_text("")
    metrics = object.__new__(hooks.Metrics)
    metrics.log, metrics.board, metrics.progress = Silent(), Silent(), Silent()
    kept, place = [], [0]

    def save_best(step, name, score, state):
      kept.append(score)
      (tmp_path / "best" / "score.json").write_text(json.dumps({"step": step, name: score}))

    state = object.__new__(Nothing)
    for start in (0, min(restart, len(scores) - 1)):
      evaluation = hooks.Evaluation(
        tmp_path,
        config,
        lambda variables, exact, progress: Scores(scores[place[0]] / 10),
        metrics,
        object.__new__(Checkpoints),
        start=start,
        save_best=save_best,
      )
      for at in range(start, len(scores) if start else min(restart, len(scores) - 1)):
        place[0] = at
        evaluation.between(at + 1, state)
        line = {"step": at + 1, "loss": 1.0} | ({} if lost[at] else {"mIoU": scores[at] / 10})
        log.write_text(log.read_text() + json.dumps(line) + "\n")
    assert kept == sorted(set(kept)) and kept[-1] == max(scores) / 10

  case()
