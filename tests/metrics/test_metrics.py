"""Counts are exact integers; ratios equal a published run's."""

import jax
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.metrics import (
  accuracy_per_class,
  confusion_matrices,
  confusion_matrix,
  dice_per_class,
  frequency_weighted_iou,
  iou_per_class,
  mean_accuracy,
  mean_iou,
  pixel_accuracy,
  precision_per_class,
)
from jaxseg.metrics.confusion import _one_hot_product


def counted_by_hand(pred, labels, num_classes, ignore_label=255):
  matrix = np.zeros((num_classes, num_classes), np.int64)
  for p, t in zip(pred.ravel(), labels.ravel(), strict=True):
    if t != ignore_label and 0 <= t < num_classes and 0 <= p < num_classes:
      matrix[t, p] += 1
  return matrix


def test_rows_are_truth_and_columns_prediction():
  labels = np.array([[0, 0, 1, 2, 255]])
  pred = np.array([[0, 1, 1, 0, 1]])
  matrix = confusion_matrix(pred, labels, num_classes=3)
  assert matrix.dtype == np.int32
  np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_every_form_equals_counting_one_by_one():
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, 9, (3, 11, 13)).astype(np.int32)  # -1, 7 and 8 are no classes
  labels[rng.random(labels.shape) < 0.2] = 255
  pred = rng.integers(0, 7, labels.shape).astype(np.int32)
  expected = counted_by_hand(pred, labels, 7)
  np.testing.assert_array_equal(
    jax.jit(lambda p, t: confusion_matrix(p, t, num_classes=7))(pred, labels), expected
  )
  flat = [x.reshape(3, -1) for x in (pred, labels)]
  np.testing.assert_array_equal(_one_hot_product(*flat, 7), expected)


def test_accelerator_form_over_several_chunks(monkeypatch):
  monkeypatch.setattr("jaxseg.metrics.confusion._CHUNK", 64)
  rng = np.random.default_rng(1)
  pred, labels = rng.integers(0, 4, (2, 2, 333)).astype(np.int32)
  np.testing.assert_array_equal(_one_hot_product(pred, labels, 4), counted_by_hand(pred, labels, 4))


def test_ignore_label_below_the_class_count_is_not_counted():
  labels = np.array([[0, 1, 2]])
  matrix = confusion_matrix(labels, labels, num_classes=3, ignore_label=1)
  np.testing.assert_array_equal(matrix, np.diag([1, 0, 1]))


def test_exact_beyond_what_float32_can_count():
  n = 2**24 + 1
  zeros = np.zeros((1, n), np.uint8)
  assert confusion_matrix(zeros, zeros, num_classes=2)[0, 0] == n


def test_ratios_by_hand():
  # Class 2 occurs in neither; class 3 is predicted but never true.
  matrix = np.array([[6, 2, 0, 0], [1, 7, 0, 4], [0, 0, 0, 0], [0, 0, 0, 0]])
  iou = iou_per_class(matrix)
  np.testing.assert_allclose(iou, [6 / 9, 7 / 14, np.nan, 0.0])
  np.testing.assert_allclose(accuracy_per_class(matrix), [6 / 8, 7 / 12, np.nan, np.nan])
  assert mean_iou(matrix) == pytest.approx((6 / 9 + 7 / 14 + 0) / 3)
  assert mean_accuracy(matrix) == pytest.approx((6 / 8 + 7 / 12) / 2)
  assert pixel_accuracy(matrix) == pytest.approx(13 / 20)


def test_nothing_counted_is_nan_not_zero():
  nothing = np.zeros((3, 3), np.int64)
  assert all(np.isnan(f(nothing)) for f in (mean_iou, mean_accuracy, pixel_accuracy))


def test_a_real_run_to_the_last_digit(shared):
  run = np.load(shared / "data" / "run_2021-10-13.npz")
  assert mean_iou(run["confusion"]) == float(run["reported_miou"]) == 0.6889543175845664
  np.testing.assert_array_equal(iou_per_class(run["confusion"].astype(np.int64)), run["reported_iou"])


def test_precision_recall_f1_and_frequency_weighted_iou_of_scikit_learn():
  sklearn = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(2)
  labels = rng.integers(0, 5, (2, 40, 30))
  pred = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 5, labels.shape))
  matrix = confusion_matrix(pred, labels, num_classes=5)
  np.testing.assert_array_equal(sklearn.confusion_matrix(labels.ravel(), pred.ravel()), matrix)
  precision, recall, f1, _ = sklearn.precision_recall_fscore_support(labels.ravel(), pred.ravel())
  for got, expected in (
    (precision_per_class(matrix), precision),
    (accuracy_per_class(matrix), recall),
    (dice_per_class(matrix), f1),
  ):
    np.testing.assert_allclose(got, expected, rtol=1e-12)
  weighted = sklearn.jaccard_score(labels.ravel(), pred.ravel(), average="weighted")
  assert frequency_weighted_iou(matrix) == pytest.approx(weighted, rel=1e-12)
  per_image = confusion_matrices(pred, labels, num_classes=5)
  np.testing.assert_array_equal(per_image[1], sklearn.confusion_matrix(labels[1].ravel(), pred[1].ravel()))


def test_rules_for_absent_classes():
  # Class 1 is never found, class 2 occurs nowhere, class 3 is predicted only.
  matrix = np.array([[6, 2, 0, 1], [3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
  assert mean_iou(matrix) == mean_iou(matrix, absent="mmsegmentation") == pytest.approx((6 / 12 + 0 + 0) / 3)
  assert mean_iou(matrix, absent="cgnet") == pytest.approx(6 / 12)
  with pytest.raises(UserError, match="absent is 'none'; expected 'mmsegmentation' or 'cgnet'"):
    mean_iou(matrix, absent="none")
