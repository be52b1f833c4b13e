"""Values of a config and words of a command line: what is accepted is exactly what can be."""

import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import cli
from jaxseg import config as config_lib
from jaxseg.config import keys, validate
from jaxseg.errors import UserError
from tests.hostile.changes import assert_sentence, cases, names

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# Key → whether a finite number can be its value; written anew here, from what the numbers mean.
NUMBERS = {
  "optimizer.learning_rate": lambda v: 0 <= v <= 100,
  "optimizer.weight_decay": lambda v: 0 <= v <= 10,
  "optimizer.b1": lambda v: 0 <= v < 1,
  "optimizer.b2": lambda v: 0 <= v < 1,
  "optimizer.eps": lambda v: 0 < v <= 1,
  "optimizer.momentum": lambda v: 0 <= v < 1,
  "optimizer.grad_clip": lambda v: 0 <= v <= 1e6,
  "optimizer.schedule.power": lambda v: 0 < v <= 100,
  "optimizer.schedule.end_value": lambda v: 0 <= v <= 100,
  "optimizer.schedule.factor": lambda v: 0 < v <= 100,
  "optimizer.schedule.warmup_ratio": lambda v: 0 <= v <= 1,
  "ema_decay": lambda v: 0 <= v < 1,
  "loss.label_smoothing": lambda v: 0 <= v < 1,
  "loss.weights.logits": lambda v: 0 < v <= 1e6,
  "data.flip": lambda v: 0 <= v <= 1,
  "data.scale_step": lambda v: 0 <= v <= 100,
  "data.cat_max_ratio": lambda v: 0 < v <= 1,
  "eval.crf.w1": lambda v: 0 <= v <= 1e6,
  "eval.crf.sxy": lambda v: 0 < v <= 1e6,
}
WHOLE = {
  "seed": lambda v: 0 <= v < 2**32,
  "batch_size": lambda v: 1 <= v <= 2**16 and v * 513 * 513 <= 2**33,
  "total_steps": lambda v: 20 < v <= 10**9,  # the schedule has 20 steps of warm-up here
  "accumulate": lambda v: 1 <= v <= 2**16,
  "data.workers": lambda v: -1 <= v <= 1024,
  "eval.batch_size": lambda v: 1 <= v <= 2**16,
  "eval.multiple": lambda v: 0 <= v <= 4096,
  "log.every_steps": lambda v: 1 <= v <= 10**9,
  "checkpoint.keep_last": lambda v: 1 <= v <= 10_000,
  "mesh.devices": lambda v: 0 <= v <= 10**6,
  "log.panel_images": lambda v: 0 <= v <= 256,
}
EDGES = [0.0, -0.0, 1.0, 10.0, 100.0, 1e6, 5e-324, 1e-300, 1e300, math.nan, math.inf, -math.inf]
number = st.one_of(
  st.sampled_from(
    [near for edge in EDGES for near in (edge, math.nextafter(edge, 9e9), math.nextafter(edge, -9e9))]
  ),
  st.floats(-2, 2),
  st.floats(),
)
whole = st.one_of(
  st.integers(-3, 40),
  st.integers(0, 66).flatmap(lambda bits: st.integers(2**bits - 2, 2**bits + 2)),
  st.integers(-(2**70), 2**70),
)


@pytest.fixture(scope="module")
def config():
  made = config_lib.load(f"{CONFIGS / 'deeplabv3'}.py", overrides=[("optimizer.schedule.warmup_steps", "20")])
  validate.validate(made)
  return made


def accepted(config, key, text):
  """Whether a copy of the config takes it; what is said otherwise is a sentence about the key."""
  from jaxseg.config import overrides

  copy = config.copy_and_resolve_references()
  for follower in ("optimizer.schedule.total_steps",):
    if key == "total_steps":
      overrides.apply(copy, [(follower, "30")])
  try:
    overrides.apply(copy, [(key, text)])
    validate.validate(copy)
  except UserError as error:
    assert_sentence(error)
    assert key.rsplit(".", 1)[-1] in str(error) or key.split(".")[0] in str(error)
    return False
  return True


def test_a_number_is_taken_exactly_where_it_can_be(config):
  seen = set()

  @cases(80)
  @given(st.sampled_from(sorted(NUMBERS)), number)
  def case(key, value):
    want = math.isfinite(value) and NUMBERS[key](value)
    assert accepted(config, key, repr(value)) == want, (key, value)
    seen.add(want)

  case()
  assert seen == {True, False}


def test_a_whole_number_is_taken_exactly_where_it_can_be(config):
  @cases(60)
  @given(st.sampled_from(sorted(WHOLE)), whole)
  def case(key, value):
    want = WHOLE[key](value) if key != "total_steps" else 1 <= value <= 10**9
    assert accepted(config, key, str(value)) == want, (key, value)

  case()


def test_weights_of_losses_and_classes():
  base = config_lib.load(f"{CONFIGS / 'cgnet_m3n21_camvid'}.py")
  weight = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, math.nan, math.inf]), st.floats(0, 10))

  @cases(30)
  @given(st.lists(weight, min_size=11, max_size=11))
  def case(weights):
    copy = base.copy_and_resolve_references()
    copy.loss.class_weights = tuple(weights)
    finite = all(math.isfinite(w) and 0 <= w <= 1e6 for w in weights)
    try:
      validate.validate(copy)
      ok = True
    except UserError as error:
      assert_sentence(error)
      ok = False
    assert ok == (finite and any(weights)), weights

  case()


def test_groups_that_match(config):
  paths = {f"encoder/stage{i}/block{j}/conv/kernel": "" for i in range(1, 4) for j in range(3)}
  paths = {path: path for path in paths}

  @cases(30)
  @given(
    st.one_of(names, st.sampled_from(["stage", "stage9", "^encoder", "kernel$", "(", "a{9999999999}", "["]))
  )
  def case(pattern):
    import re

    copy = config.copy_and_resolve_references()
    copy.optimizer.groups = ((pattern, 1.0, 0.0),)
    try:
      validate.validate(copy)
      validate.validate_parameters(copy, paths)
    except UserError as error:
      assert_sentence(error)
      return
    assert any(re.search(pattern, path) for path in paths)

  case()


def test_whole_command_lines(capsys):
  """`jaxseg config` with drawn words, as they are typed: printed, or one sentence and exit code 2."""
  leaves = keys.leaves(config_lib.load(f"{CONFIGS / 'cgnet_m3n21_synthetic'}.py"))
  texts = st.one_of(
    names,
    whole.map(str),
    number.map(repr),
    st.sampled_from(
      [
        "(1,)",
        "(0,1)",
        "((0,0),)",
        "(",
        "[1",
        "None",
        "true",
        "foo",
        "2**64",
        "(100000,100000)",
        "()",
        "9" * 5000,
      ]
    ),
    st.recursive(whole, lambda inner: st.tuples(inner, inner), max_leaves=9).map(repr),
  )
  word = st.one_of(
    st.tuples(st.sampled_from(leaves), texts).map(lambda pair: f"--config.{pair[0]}={pair[1]}"),
    st.tuples(names, texts).map(lambda pair: f"--config.{pair[0]}={pair[1]}"),
    names.map(lambda name: f"--{name}"),
    st.tuples(names).map(lambda pair: f"--config=cgnet_m3n21_synthetic:{pair[0]}"),
  )

  @cases(20)
  @given(st.lists(word, min_size=1, max_size=2))
  def case(words):
    try:
      cli.main(["config", "--config=cgnet_m3n21_synthetic:smoke", *words])
      code = 0
    except SystemExit as stopped:
      code = stopped.code
    out = capsys.readouterr()
    assert code in (0, 2, None), words
    assert all(c.isprintable() or c == "\n" for c in out.out + out.err), words
    assert code != 2 or out.err.startswith("jaxseg"), out.err
    assert "Traceback" not in out.err

  case()


PLACES = ("file/below", "file", "/proc/nothing", "/dev/null/x", "a" * 300)


@pytest.mark.parametrize(
  ("words", "work"),
  [
    (["check-dataset", "--config=cgnet_m3n21_synthetic", "--output="], "jaxseg.data.check.report"),
    (
      ["plan", "--config=cgnet_m3n21_synthetic", "--topology=v5e:1x1", "--dump="],
      "jaxseg.commands.plan.training_plan",
    ),
  ],
)
def test_outputs_are_tried_before_the_work(tmp_path, capsys, monkeypatch, words, work):
  """Those of eval are in tests/commands/test_evaluate.py."""
  (tmp_path / "file").write_text("")
  monkeypatch.setattr(work, None)  # to call it would be a TypeError
  for place in PLACES:
    if place == "file" and words[0] == "plan":
      continue  # a file may be written again
    where = place if place.startswith("/") else f"{tmp_path}/{place}"
    with pytest.raises(SystemExit) as stopped:
      cli.main([*words[:-1], words[-1] + where])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "cannot be written" in error and error.count("\n") == 1
