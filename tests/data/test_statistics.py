"""Histograms and the weights that recipes derive from them."""

import numpy as np
import pytest

from jaxseg.data import DataError, class_weights, label_histogram, open_split
from tests.data import miniature

# Pixels of ids 0..10 in CamVid (SegNet split), counted over the origin's masks.
CAMVID_TRAIN = np.array(
  [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967]
)
CAMVID_VAL = np.array(
  [1601620, 4531180, 98499, 5053176, 1521751, 2851125, 155724, 537197, 304716, 113531, 387010]
)


def test_formula():
  # Cityscapes: road is 36.9 % of the labelled pixels, and its weight 2.60.
  assert class_weights(np.array([369, 631]))[0] == pytest.approx(2.60, abs=5e-3)
  assert class_weights(np.array([1, 0]), offset=1.02).tolist() == pytest.approx(
    [1 / np.log(2.02), 1 / np.log(1.02)]
  )


def test_camvid_trainval():
  # The authors' code with its range fixed gives these for the 468 masks of train and val.
  published = [4.3667, 3.3573, 9.6450, 2.8410, 6.9008, 5.1239, 9.4580, 9.1090, 7.0867, 9.8683, 9.8089]
  np.testing.assert_allclose(class_weights(CAMVID_TRAIN + CAMVID_VAL), published, atol=5e-5)


def test_empty_histogram():
  with pytest.raises(DataError, match="counts no pixel"):
    class_weights(np.zeros(3, np.int64))


def test_histogram_skips_the_unlabelled():
  source = open_split(miniature.settings("synthetic"), "val")
  labels = np.concatenate([source[i]["label"].ravel() for i in range(len(source))])
  counts = label_histogram(source, num_classes=8)
  assert counts.dtype == np.int64
  assert counts.tolist() == [(labels == k).sum() for k in range(8)]
  assert counts.sum() == (labels != 255).sum() < labels.size


def test_camvid_histogram(real_camvid):
  source = open_split(real_camvid, "train")
  np.testing.assert_array_equal(label_histogram(source, num_classes=11), CAMVID_TRAIN)
