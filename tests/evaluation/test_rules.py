"""Test-time rules against a second, slow and plain form of each: NumPy loops, torch's resize, OpenCV."""

import dataclasses

import cv2
import jax
import ml_collections
import numpy as np
import pytest

import jaxseg
from jaxseg import sharding
from jaxseg.commands.networks import drawn_variables
from jaxseg.config.rule import make_inference_rule
from jaxseg.errors import UserError
from jaxseg.evaluation import Grouping, InferenceRule, Predictor, evaluate, make_predict, views
from jaxseg.evaluation.rule import keep_ratio
from jaxseg.types import Preprocess

PREPROCESS = Preprocess(mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
CLASSES = 4
SIZES = [(45, 61), (40, 50), (30, 72), (45, 62), (21, 33)]
TRACES = []

RULES = {
  "slide": InferenceRule(mode="slide", crop_size=(24, 32), stride=(16, 21)),
  "slide, padded, flipped": InferenceRule(
    mode="slide", crop_size=(32, 32), stride=(20, 24), multiple=16, scales=(0.75, 1.0), flip=True
  ),
  "whole, padded, flipped": InferenceRule(resize=(64, 40), multiple=16, scales=(0.75, 1.0), flip=True),
  "whole, up to a multiple": InferenceRule(resize=(64, 40), multiple=16, multiple_rule="resize"),
}


def network(variables, image):
  """Logits at a quarter of the size, which know their place and the whole input; NumPy or JAX."""
  TRACES.append(image.shape)
  near = image[:, 1::4, 2::4] @ variables["near"]
  ramp = np.linspace(0, 1, near.shape[2], dtype=np.float32)[:, None] * variables["ramp"]
  return near + ramp + (image.mean((1, 2)) @ variables["far"])[:, None, None]


@pytest.fixture(scope="module")
def variables():
  rng = np.random.default_rng(1)
  shapes = {"near": (3, CLASSES), "far": (3, CLASSES), "ramp": (CLASSES,)}
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def pictures():
  rng = np.random.default_rng(0)
  images, labels = [], []
  for h, w in SIZES:
    images.append(cv2.resize(rng.integers(0, 256, (h // 6, w // 6, 3)).astype(np.uint8), (w, h)))
    labels.append(rng.integers(0, CLASSES, (h, w)).astype(np.int32))
    labels[-1][rng.random((h, w)) < 0.1] = 255
  return images, labels


def enlarged(logits, size):
  import torch

  x = torch.from_numpy(np.ascontiguousarray(logits.transpose(2, 0, 1)))[None]
  return torch.nn.functional.interpolate(x, size, mode="bilinear")[0].numpy().transpose(1, 2, 0)


def slid(variables, image, rule):
  h, w = image.shape[:2]
  (crop_h, crop_w), (step_h, step_w) = rule.crop_size, rule.stride
  total, seen = np.zeros((h, w, CLASSES)), np.zeros((h, w, 1))
  for i in range(-(-max(h - crop_h, 0) // step_h) + 1):
    for j in range(-(-max(w - crop_w, 0) // step_w) + 1):
      bottom, right = min(i * step_h + crop_h, h), min(j * step_w + crop_w, w)
      part = (slice(max(bottom - crop_h, 0), bottom), slice(max(right - crop_w, 0), right))
      window = image[part]
      total[part] += enlarged(network(variables, window[None])[0], window.shape[:2])
      seen[part] += 1
  return (total / seen).astype(np.float32)


def expected_scores(variables, image, rule):
  """Mean softmax of one picture, every step as its reference has it."""
  views = []
  for scale in rule.scales:
    h, w = image.shape[:2]
    if rule.resize:
      long, short = (int(side * scale) for side in rule.resize)
    else:
      long, short = (int(side * scale + 0.5) for side in (max(h, w), min(h, w)))
    factor = min(long / max(h, w), short / min(h, w))
    picture = cv2.resize(image, (int(w * factor + 0.5), int(h * factor + 0.5)))
    if rule.multiple_rule == "resize":
      picture = cv2.resize(picture, tuple(-(-side // 16) * 16 for side in picture.shape[1::-1]))
    for flip in (False, True)[: 1 + rule.flip]:
      x = PREPROCESS(picture[:, ::-1] if flip else picture)
      h, w = x.shape[:2]
      if rule.multiple and rule.multiple_rule == "pad":
        x = np.pad(x, [(0, -h % 16), (0, -w % 16), (0, 0)])
      if rule.mode == "slide":
        logits = slid(variables, x, rule)
      else:
        logits = enlarged(network(variables, x[None])[0], x.shape[:2])
      logits = logits[:h, :w]
      logits = enlarged(logits[:, ::-1] if flip else logits, image.shape[:2])
      odds = np.exp(logits - logits.max(-1, keepdims=True))
      views.append(odds / odds.sum(-1, keepdims=True))
  return np.mean(views, axis=0)


def grouped(rule, images, labels, size=2):
  """As the pipeline does it: pictures with one key share a batch, whatever their sizes."""
  grouping, groups = Grouping(rule), {}
  for i, image in enumerate(images):
    groups.setdefault(grouping.key(image.shape[:2]), []).append(i)
  for members in groups.values():
    for start in range(0, len(members), size):
      some = members[start : start + size]
      examples = [{"image": images[i], "label": labels[i], "id": str(i)} for i in some]
      yield grouping.collate(examples, sizes=[images[i].shape[:2] for i in some], count=size)


@pytest.mark.parametrize("name", RULES)
def test_equals_the_slow_form_for_pictures_of_any_size(name, variables):
  rule, (images, labels) = RULES[name], pictures()
  expected = [expected_scores(variables, image, rule) for image in images]
  predictor = Predictor(network, rule=rule, preprocess=PREPROCESS)
  matrix, groups = np.zeros((CLASSES, CLASSES), np.int64), set()
  TRACES.clear()
  for batch in grouped(rule, images, labels):
    scores = np.exp(np.asarray(predictor.scores(variables, batch)))
    for row, member in enumerate(batch["id"]):
      if member:
        wanted, label = expected[int(member)], labels[int(member)]
        h, w = label.shape
        assert tuple(batch["size"][row]) == (h, w)
        np.testing.assert_allclose(scores[row, :h, :w], wanted, atol=1e-5)
        known = label != 255
        np.add.at(matrix, (label[known], wanted.argmax(-1)[known]), 1)
    groups.add(batch["view0"].shape)
  # Windows have two sizes, whatever the pictures: the crop, and that of the one picture that is smaller.
  if name == "slide":
    assert {shape[1:3] for shape in TRACES} == {(24, 32), (21, 32)}
  assert len(groups) < len(SIZES)
  report = evaluate(
    network,
    variables,
    grouped(rule, images, labels),
    num_classes=CLASSES,
    preprocess=PREPROCESS,
    rule=rule,
    mesh=sharding.make_mesh() if name == "slide" else None,
  )
  # Both are single precision; a pixel may be a tie.
  assert np.abs(report.matrix - matrix).sum() <= 2
  assert report.matrix.sum() == matrix.sum()


def test_batches_of_one_size_need_no_grouping(variables):
  rule, (images, labels) = RULES["slide"], pictures()
  batch = {"image": np.stack(images[:1] * 2), "label": np.stack(labels[:1] * 2), "id": np.array(["0", ""])}
  wanted = expected_scores(variables, images[0], rule).argmax(-1)
  predicted = np.asarray(make_predict(network, preprocess=PREPROCESS, rule=rule)(variables, batch["image"]))
  assert predicted.shape == (2, 45, 61)
  assert (predicted == wanted).mean() > 0.999
  report = evaluate(network, variables, [batch], num_classes=CLASSES, preprocess=PREPROCESS, rule=rule)
  assert report.matrix.sum() == 2 * np.sum(labels[0] != 255)


def test_processes_give_equal_shapes_whatever_they_read():
  rule, (images, labels) = RULES["slide"], pictures()
  sizes = [SIZES[0], SIZES[3]]
  examples = [{"image": images[i], "label": labels[i], "id": str(i)} for i in (0, 3)]
  whole = Grouping(rule).collate(examples, sizes=sizes, count=4)
  parts = [Grouping(rule).collate(some, sizes=sizes, count=2) for some in (examples, [])]
  for name, value in whole.items():
    rows = np.concatenate([part[name] for part in parts])
    assert rows.shape == value.shape and rows.dtype.kind == value.dtype.kind
    np.testing.assert_array_equal(rows[:2], value[:2])
  assert list(whole["id"]) == ["0", "3", "", ""]
  assert (whole["label"][2:] == 255).all() and not whole["view0"][2:].any()


def test_few_rows_at_a_time_are_the_same(variables, monkeypatch):
  rule, (images, labels) = RULES["whole, padded, flipped"], pictures()
  batch = next(grouped(rule, images, labels))
  whole = Predictor(network, rule=rule, preprocess=PREPROCESS).labels(variables, batch)
  monkeypatch.setattr("jaxseg.evaluation.merge._HELD", 1)
  rows = Predictor(network, rule=rule, preprocess=PREPROCESS).labels(variables, batch)
  np.testing.assert_array_equal(whole, rows)


def test_of_sliding_views_only_their_sum_is_kept(variables, monkeypatch):
  rule = InferenceRule(mode="slide", crop_size=(24, 32), stride=(16, 21), scales=(0.75, 1.0, 1.25), flip=True)
  (image, *_), _ = pictures()
  held, ways_back = [], views.ways_back

  def counted(*args, **kwargs):
    held.append(sum(x.ndim == 4 and x.shape[-1] == CLASSES for x in jax.live_arrays()))
    return ways_back(*args, **kwargs)

  monkeypatch.setattr(views, "ways_back", counted)
  before = sum(x.ndim == 4 and x.shape[-1] == CLASSES for x in jax.live_arrays())
  predictor = Predictor(network, rule=rule, preprocess=PREPROCESS)
  labels = predictor.labels(variables, {"image": image[None]})
  assert len(held) == 6 and max(held) - before <= 2, held
  expected = expected_scores(variables, image, rule).argmax(-1)
  assert (np.asarray(labels)[0, : image.shape[0], : image.shape[1]] == expected).mean() > 0.999


def test_sizes_by_mmcvs_rounding():
  assert keep_ratio((512, 683), (2048, 512)) == (512, 683)
  assert keep_ratio((1500, 2001), (512, 2048)) == (512, 683)
  assert keep_ratio((600, 3000), (2048, 512)) == (410, 2048)
  assert keep_ratio((1, 3000), (30, 20)) == (1, 30)
  rule = InferenceRule(resize=(2048, 512), multiple=32, scales=(0.75, 1.0))
  assert rule.resized((1500, 2001), 0.75) == (384, 512)
  assert rule.key((1500, 2001)) == ((384, 512), (512, 704))
  up = InferenceRule(resize=(2048, 512), multiple=32, multiple_rule="resize")
  assert up.steps((1500, 2001), 1.0) == [(512, 683), (512, 704)]


def test_windows_by_hand():
  cityscapes = InferenceRule(mode="slide", crop_size=(1024, 1024), stride=(768, 768))
  # Three windows in a row: 0, 768 and, moved back, 1024; the grid reaches 768 * 2 + 1024.
  assert cityscapes.key((1024, 2048)) == ((1024, 2560),)
  assert cityscapes.key((1000, 1024)) == ((1000, 1024),)
  # All sizes between two steps share compiled code.
  assert {cityscapes.key((1024, width)) for width in range(1793, 2561)} == {((1024, 2560),)}


@pytest.mark.parametrize(
  ("fields", "sentence"),
  [
    (dict(mode="sliding"), "mode is 'sliding'; expected 'whole' or 'slide'"),
    (dict(mode="slide"), r"crop_size is \(0, 0\); mode 'slide' expects \(height, width\)"),
    (dict(mode="slide", crop_size=(64,), stride=(32, 32)), r"crop_size is \(64,\)"),
    (dict(mode="slide", crop_size=(64, 64), stride=(48, 0)), r"stride is \(48, 0\)"),
    (dict(mode="slide", crop_size=(64, 64), stride=(65, 64)), "stride .* is larger than crop_size"),
    (dict(resize=(512,)), r"resize is \(512,\); expected \(long, short\)"),
    (dict(multiple=-1), "multiple is -1"),
    (dict(multiple=32, multiple_rule="crop"), "multiple_rule is 'crop'; expected 'pad' or 'resize'"),
    (dict(scales=()), r"scales is \(\); expected factors above 0"),
    (dict(scales=(1.0, 0.0)), "expected factors above 0"),
    (dict(scales=(1.0, float("nan"))), "expected factors above 0"),
    (dict(scales=(1.0, 0.5, 1.0)), "a factor occurs twice"),
    (dict(resize=(40, 20), scales=(0.01,)), "less than a pixel"),
  ],
)
def test_bad_rules(fields, sentence):
  with pytest.raises(ValueError, match=sentence):
    InferenceRule(**fields)
  config = ml_collections.ConfigDict(dict(every_steps=0, batch_size=2, **fields))
  with pytest.raises(UserError, match=f"config.eval: .*{sentence}"):
    make_inference_rule(config)


def test_windows_without_sliding():
  with pytest.raises(ValueError, match="mode is 'whole', which has no windows; set mode='slide'"):
    InferenceRule(crop_size=(64, 64))
  # A config's windows stay for when the mode is slide again; an older run's config lacks the keys.
  config = ml_collections.ConfigDict(dict(mode="whole", crop_size=(64, 64), stride=(48, 48)))
  assert make_inference_rule(config).plain and make_inference_rule(ml_collections.ConfigDict()).plain
  config.update(mode="slide", multiple=32, resize=(512, 2048), flip=True)
  assert make_inference_rule(config).text() == (
    "fitted into 2048x512, padded to multiples of 32, windows of 64x64 every 48x48, and mirrored"
  )


def test_a_label_map_cannot_be_resized(variables):
  with pytest.raises(ValueError, match=r"gives a label map of shape .* need logits"):
    make_predict(lambda v, x: x[..., 0] > 0, preprocess=PREPROCESS, rule=InferenceRule(flip=True))(
      variables, pictures()[0][0][None]
    )


def test_predict_takes_every_rule():
  model = jaxseg.create_model("colour_only", num_classes=CLASSES)
  variables = drawn_variables(model)
  facts = dict(classes=tuple("abcd"), palette=np.zeros((CLASSES, 3), np.uint8), arch="colour_only")
  net = jaxseg.Net(model=model, variables=variables, preprocess=PREPROCESS, **facts)
  image = cv2.resize(pictures()[0][0], (54, 42))
  for options in (
    dict(mode="slide", crop_size=(32, 40), stride=(20, 32)),
    dict(resize=(48, 36), multiple=32, scales=(0.75, 1.0), flip=True),
  ):
    scores = Predictor(model, rule=InferenceRule(**options), preprocess=PREPROCESS).scores
    wanted = np.asarray(scores(variables, {"image": image[None]}))[0, :42, :54]
    np.testing.assert_array_equal(net.predict(image, **options), wanted.argmax(-1))
  # The classes of single pixels do not depend on windows: 512 x 512 and two thirds of it by default.
  np.testing.assert_array_equal(net.predict(image, mode="slide"), net.predict(image))
  # A weight in which the picture has no say leaves what the network says.
  crf = dict(kernels=((3.0, None, 0.0),), steps=1, method="exact")
  np.testing.assert_array_equal(net.predict(image, flip=True, crf=crf), net.predict(image, flip=True))
  with pytest.raises(ValueError, match=r"stride .* is larger than crop_size"):
    net.predict(image, mode="slide", crop_size=(40, 40), stride=(41, 40))
  # A published size comes first, and the result has the picture's own.
  published = dataclasses.replace(net, preprocess=dataclasses.replace(PREPROCESS, size=(48, 48)))
  small = dict(mode="slide", crop_size=(48, 48), stride=(32, 32))
  np.testing.assert_array_equal(published.predict(image, **small), published.predict(image))
