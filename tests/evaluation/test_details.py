"""An evaluation's further counts: the same over batches, meshes and rules, and equal to NumPy's."""

import jax
import numpy as np
import pytest

from jaxseg import sharding
from jaxseg.evaluation import Grouping, InferenceRule, Predictor, evaluate
from jaxseg.layers.resize import resize_logits
from jaxseg.metrics import boundary_counts, trimap_counts
from tests.evaluation.test_evaluate import PREPROCESS, batches, examples
from tests.train import tiny

SETTINGS = {"num_classes": 3, "preprocess": PREPROCESS, "details": True}


@pytest.fixture(scope="module")
def model():
  model = tiny.Tiny()
  return model, tiny.variables(model)


def counted(function, pred, labels, sizes=None):
  return jax.jit(lambda p, t, s: function(p, t, num_classes=3, sizes=s))(pred, labels, sizes)


def same(one, other):
  np.testing.assert_array_equal(one.matrix, other.matrix)
  for name in ("boundary", "trimap"):
    np.testing.assert_array_equal(getattr(one.details, name), getattr(other.details, name), err_msg=name)
  np.testing.assert_array_equal(one.details.calibration[:, :2], other.details.calibration[:, :2])
  # Probabilities differ in their last bit with the shape of a batch; their sums in no more than that.
  for name in ("ECE", "val_loss"):
    assert one.scalars()[name] == pytest.approx(other.scalars()[name], rel=1e-6)
  assert [(i.index, i.name) for i in one.details.images] == [(i.index, i.name) for i in other.details.images]
  for i, j in zip(one.details.images, other.details.images, strict=True):
    np.testing.assert_array_equal(i.matrix((3, 3)), j.matrix((3, 3)))


def test_equal_to_numpy_over_any_batches_and_mesh(model):
  images, labels = examples()
  report = evaluate(*model, batches(images, labels, 2), **SETTINGS)
  same(report, evaluate(*model, batches(images, labels, 3), mesh=sharding.make_mesh(), **SETTINGS))
  logits = model[0].apply(model[1], PREPROCESS(images), train=False)["logits"]
  log_probs = np.asarray(jax.nn.log_softmax(resize_logits(logits, labels.shape[1:])), np.float64)
  pred, known = log_probs.argmax(-1), labels != 255
  right = pred == labels
  loss = -np.take_along_axis(log_probs, np.where(known, labels, 0)[..., None], -1)[known]
  scores = report.scalars()
  assert scores["val_loss"] == pytest.approx(loss.mean(), rel=1e-4)
  confidence = np.exp(log_probs.max(-1))
  counts = report.details.calibration
  assert counts[:, 0].sum() == right[known].sum() and counts[:, 1].sum() == known.sum()
  bins = np.ceil(confidence[known] * 15).astype(int) - 1
  error = sum(
    (bins == i).mean() * abs(right[known][bins == i].mean() - confidence[known][bins == i].mean())
    for i in np.unique(bins)
  )
  assert scores["ECE"] == pytest.approx(error, abs=1e-4)
  np.testing.assert_array_equal(report.details.boundary, counted(boundary_counts, pred, labels))
  np.testing.assert_array_equal(report.details.trimap, counted(trimap_counts, pred, labels))
  ious = []
  for p, label in zip(pred, labels, strict=True):
    k = label != 255
    parts = [(np.sum((p == i) & (label == i)), np.sum((p == i) & k | (label == i))) for i in range(3)]
    ious.append(np.mean([both / either for both, either in parts if either]))
  np.testing.assert_allclose(report.details.image_iou(), ious)
  assert scores["image_mIoU"] == pytest.approx(np.mean(ious))


@pytest.mark.parametrize(
  "rule",
  [
    InferenceRule(multiple=32),
    InferenceRule(scales=(1.0, 1.5), flip=True, mode="slide", crop_size=(32, 32), stride=(24, 24)),
  ],
  ids=["padded", "windows"],
)
def test_under_a_rule_with_pictures_of_two_sizes(model, rule):
  images, labels = examples(3, 40, 52)
  pictures = [
    {"image": i, "label": t, "id": str(n)} for n, (i, t) in enumerate(zip(images, labels, strict=True))
  ]
  pictures[1] = {"image": images[1][:36, :50], "label": labels[1][:36, :50], "id": "1"}
  sizes = [p["label"].shape for p in pictures]
  batch = Grouping(rule).collate(pictures, sizes=sizes, count=4)
  report = evaluate(*model, [batch], rule=rule, **SETTINGS)
  pred = Predictor(model[0], rule=rule, preprocess=PREPROCESS).labels(model[1], batch)
  counts = counted(boundary_counts, pred, batch["label"], np.array([*sizes, (1, 1)]))
  np.testing.assert_array_equal(report.details.boundary, counts)
  alone = evaluate(*model, [batch], rule=rule, num_classes=3, preprocess=PREPROCESS)
  np.testing.assert_array_equal(report.matrix, alone.matrix)
  assert alone.details is None and report.details.loss[:, 0].sum() == report.matrix.sum()


def test_label_maps_have_no_probabilities():
  images, labels = examples()
  report = evaluate(
    lambda variables, image: image[..., 0].astype(int) * 0, {}, batches(images, labels, 2), **SETTINGS
  )
  assert "ECE" not in report.scalars() and report.scalars()["boundary_mIoU"] >= 0
