"""Boundary IoU by the published definition, trimap IoU by dilation: both with OpenCV, one class at a time."""

import cv2
import jax
import numpy as np
import pytest

from jaxseg.metrics import boundary_counts, iou_of_counts, trimap_counts
from jaxseg.metrics.boundary import TRIMAP_WIDTHS

CLASSES = 4
SIZES = np.array([[70, 110], [61, 87], [70, 40]])


@pytest.fixture(scope="module")
def maps():
  """Labels in blobs, predictions right in two of three places, and what is beyond each picture ignored."""
  rng = np.random.default_rng(0)

  def blobs():
    noise = rng.normal(size=(70, 110, CLASSES)).astype(np.float32)
    return np.argmax([cv2.GaussianBlur(noise[..., i], (0, 0), 5) for i in range(CLASSES)], axis=0)

  labels = np.stack([blobs() for _ in SIZES])
  pred = np.where(np.stack([blobs() for _ in SIZES]) == 0, blobs(), labels)
  labels[0, 12:30, 20:60] = 255
  for label, (h, w) in zip(labels, SIZES, strict=True):
    label[h:], label[:, w:] = 255, 255
  return pred, labels


def contour(mask, steps):
  """What the paper's `mask_to_boundary` gives."""
  padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
  return mask & ~cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1].astype(bool)


def pictures(pred, labels):
  for p, label, (h, w) in zip(pred, labels, SIZES, strict=True):
    yield p[:h, :w], label[:h, :w]


def counted(both, label, pred):
  return [np.count_nonzero(mask) for mask in (both, label, pred)]


@pytest.mark.parametrize("dilation", [0.02, 0.1])
def test_boundary_iou_is_that_of_eroded_masks(maps, dilation):
  expected = np.zeros((CLASSES, 3), np.int64)
  for pred, label in pictures(*maps):
    steps = max(1, round(dilation * np.hypot(*label.shape)))
    for i in range(CLASSES):
      truth, found = contour(label == i, steps), contour((pred == i) & (label != 255), steps)
      expected[i] += counted(truth & found, truth, found)
  count = jax.jit(lambda p, t, s=None: boundary_counts(p, t, num_classes=CLASSES, sizes=s, dilation=dilation))
  np.testing.assert_array_equal(count(*maps, SIZES), expected)
  whole = [x[:1] for x in maps]
  np.testing.assert_array_equal(count(*whole), count(*whole, SIZES[:1]))


def test_trimap_iou_is_that_of_a_dilated_contour(maps):
  expected = np.zeros((len(TRIMAP_WIDTHS), CLASSES, 3), np.int64)
  square = lambda side: np.ones((side, side), np.uint8)  # noqa: E731
  for pred, label in pictures(*maps):
    ids = label.astype(np.uint8)
    edges = (cv2.erode(ids, square(3)) != ids) | (cv2.dilate(ids, square(3)) != ids)
    for row, width in enumerate(TRIMAP_WIDTHS):
      band = cv2.dilate(edges.astype(np.uint8), square(2 * width - 1)).astype(bool) & (label != 255)
      for i in range(CLASSES):
        truth, found = band & (label == i), band & (pred == i)
        expected[row, i] += counted(truth & found, truth, found)
  pred, labels = maps
  got = jax.jit(lambda p, t, s: trimap_counts(p, t, num_classes=CLASSES, sizes=s))(pred, labels, SIZES)
  np.testing.assert_array_equal(got, expected)


def test_what_is_exact_scores_1_and_what_is_absent_has_no_score():
  label = np.zeros((1, 32, 40), np.int32)
  label[:, 8:20, 8:20] = 1
  iou = iou_of_counts(jax.jit(lambda x: boundary_counts(x, x, num_classes=3))(label))
  np.testing.assert_array_equal(iou, [1.0, 1.0, np.nan])
