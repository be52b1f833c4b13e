"""Evaluations of a split of many sizes: exact counts on any mesh, few compilations, sizes known before."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxseg import sharding
from jaxseg.errors import UserError
from jaxseg.evaluation import InferenceRule, evaluate, panel
from jaxseg.evaluation.ahead import AheadOfTime
from jaxseg.evaluation.canvases import MOST_CANVASES, check_sizes, pad_to_canvases, spread_batch
from jaxseg.evaluation.split import SplitEvaluator
from jaxseg.types import Preprocess
from tests.data import miniature

PREPROCESS = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
RNG = np.random.default_rng(0)
MANY = [(int(h), int(w)) for h, w in RNG.integers(33, 400, (60, 2))]
TRACES = []
PLAIN = InferenceRule()


def network(variables, image):
  """The largest channel: padding changes nothing, so that padded and exact counts are equal."""
  TRACES.append(image.shape)
  return image * variables["factor"]


class Source:
  """Images of given sizes in memory, which counts how often it is asked."""

  def __init__(self, sizes):
    self.examples, self.asked, self.read = [], 0, 0
    rng = np.random.default_rng(1)
    for i, size in enumerate(sizes):
      image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
      label = rng.integers(0, 3, size).astype(np.uint8)
      label[rng.random(size) < 0.1] = 255
      self.examples.append({"image": image, "label": label, "id": f"name{i}"})

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    self.read += 1
    return self.examples[index]

  def size(self, index):
    self.asked += 1
    return self.examples[index]["image"].shape[:2]

  def matrix(self):
    total = np.zeros((3, 3), np.int64)
    for example in self.examples:
      known = example["label"] != 255
      np.add.at(total, (example["label"][known], example["image"].argmax(-1)[known]), 1)
    return total


def _evaluator(source, rule=PLAIN, **changes):
  settings = dict(batch_size=3, num_classes=3, preprocess=PREPROCESS, mesh=sharding.make_mesh())
  return SplitEvaluator(
    network, miniature.settings("own"), "val", source=source, rule=rule, **(settings | changes)
  )


VARIABLES = {"factor": np.float32(1.0)}


def test_few_canvases_and_equal_counts():
  source = Source(MANY[:20])
  evaluator, said = _evaluator(source), []
  TRACES.clear()
  padded = evaluator(VARIABLES, exact=False, say=said.append)
  assert 2 <= len(set(TRACES)) == len(TRACES) <= MOST_CANVASES == 8
  assert padded.canvases == len(TRACES) and "exact rule's scores differ" in padded.note
  assert padded.to_dict()["canvases"] == len(TRACES)
  np.testing.assert_array_equal(padded.matrix, source.matrix())
  again = evaluator(VARIABLES, exact=False)
  assert len(TRACES) == padded.canvases, "compiled once"
  np.testing.assert_array_equal(again.matrix, padded.matrix)
  exact = evaluator(VARIABLES)
  assert exact.canvases == 0 and exact.note == "" and "canvases" not in exact.to_dict()
  np.testing.assert_array_equal(exact.matrix, source.matrix())
  assert source.asked == len(source), "sizes are known once"
  assert all(text.endswith(f"of {padded.canvases} input sizes") for text in said)


def test_exact_always_and_few_sizes_are_not_padded():
  assert _evaluator(Source(MANY[:20]), canvases="exact")(VARIABLES, exact=False).canvases == 0
  assert _evaluator(Source(MANY[:4]))(VARIABLES, exact=False).canvases == 0
  with pytest.raises(UserError, match=r"config.eval.canvases is 'some'; expected 'auto' or 'exact'"):
    _evaluator(Source(MANY[:1]), canvases="some")


@pytest.mark.parametrize(
  "rule",
  [
    InferenceRule(),
    InferenceRule(resize=(200, 64), multiple=48),
    InferenceRule(resize=(200, 64), multiple=32, multiple_rule="resize", scales=(0.75, 1.0)),
  ],
)
def test_canvases_hold_every_image(rule):
  padded = pad_to_canvases(rule, MANY)
  extents = set()
  for size in MANY:
    for scale in rule.scales:
      extent, exact = (r.extent(r.resized(size, scale)) for r in (padded, rule))
      extents.add(extent)
      assert all(a >= b for a, b in zip(extent, exact, strict=True))
      if rule.multiple:
        assert not any(side % rule.multiple for side in extent)
      # Sides are rounded one by one: what brings logits back relies on it.
      assert extent == tuple(padded.extent((side, side))[axis] for axis, side in enumerate(exact))
  assert len(extents) <= MOST_CANVASES < len({rule.key(size) for size in MANY})
  slide = InferenceRule(mode="slide", crop_size=(64, 64), stride=(32, 32))
  assert pad_to_canvases(slide, MANY) is slide


def test_any_batch_size_on_any_mesh():
  """Three images a batch on two devices: in a process of its own, since devices cannot be added later."""
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
  done = subprocess.run(
    [sys.executable, "-c", "from tests.evaluation import test_split; test_split.on_two_devices()"],
    capture_output=True, text=True, check=False, env={**os.environ, "XLA_FLAGS": flags},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]


def on_two_devices():
  source, devices = Source([(40, 50)] * 5), jax.devices()
  assert len(devices) == 2
  mesh = sharding.make_mesh()
  assert spread_batch(3, mesh) == 4 and spread_batch(4, mesh) == 4 and spread_batch(3, None) == 3
  np.testing.assert_array_equal(_evaluator(source, mesh=mesh)(VARIABLES).matrix, source.matrix())
  rule = InferenceRule(scales=(1.0, 1.5))
  one = _evaluator(source, rule, mesh=sharding.make_mesh(devices=devices[:1]))(VARIABLES)
  np.testing.assert_array_equal(_evaluator(source, rule, mesh=mesh)(VARIABLES).matrix, one.matrix)
  # Batches that somebody else made.
  batch = {name: np.stack([e[name] for e in source.examples]) for name in ("image", "label")}
  report = evaluate(network, VARIABLES, [batch], num_classes=3, preprocess=PREPROCESS, mesh=mesh)
  np.testing.assert_array_equal(report.matrix, source.matrix())


@pytest.mark.parametrize(
  ("rule", "size", "sentence"),
  [
    (InferenceRule(), (31, 80), "image name1 of split 'val' is 31x80 .* would reach the network as 31x80"),
    (InferenceRule(scales=(1e5,)), (40, 40), "which no device holds; lower config.eval.scales"),
    (InferenceRule(multiple=1000000), (40, 40), "as 1000000x1000000, which no device holds"),
    (
      InferenceRule(mode="slide", crop_size=(1, 1), stride=(1, 1)),
      (40, 40),
      r"config.eval.crop_size is \(1, 1\); windows have to be at least 32x32",
    ),
  ],
)
def test_what_cannot_be_evaluated_is_known_before(rule, size, sentence):
  with pytest.raises(UserError, match=sentence):
    _evaluator(Source([(40, 50) if rule == InferenceRule() else size, size]), rule)
  check_sizes(InferenceRule(resize=(64, 40)), [(31, 40)], split="val")  # enlarged


def test_ahead_of_time_says_what_it_waits_for():
  ran, waited = [], []
  function = AheadOfTime(jax.jit(lambda x: ran.append(x.shape) or x + 1))
  shapes = [jax.ShapeDtypeStruct((n,), np.float32) for n in (3, 4)]
  function.waiting = lambda number, count: waited.append((number, count))
  function.compile_ahead([(shape,) for shape in shapes])
  assert function(np.ones(4, np.float32)).tolist() == [2.0] * 4
  assert function(np.ones(3, np.float32)).tolist() == [2.0] * 3
  assert function(np.ones(5, np.float32)).shape == (5,)  # not announced
  assert sorted(ran) == [(3,), (4,), (5,)]
  assert set(waited) <= {(2, 2), (1, 2)}

  def fails(x):
    raise ValueError("no such network")

  function = AheadOfTime(jax.jit(fails))
  function.compile_ahead([(shapes[0],)])
  with pytest.raises(ValueError, match="no such network"):
    function(np.ones(3, np.float32))


def test_a_panel_of_many_sizes():
  palette, classes = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8), ("a", "b", "c")
  sizes = [(40, 60), (50, 33), (400, 700)]
  images = [np.full((*size, 3), 7 + i, np.uint8) for i, size in enumerate(sizes)]
  labels = [np.full(size, i, np.int32) for i, size in enumerate(sizes)]
  picture = panel(images, labels, labels, palette, classes)
  for i in range(3):
    assert (picture == palette[i]).all(-1).any() and (picture == 7 + i).all(-1).any()
