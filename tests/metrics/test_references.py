"""Every score equal to scikit-learn, torchmetrics, OpenCV and SciPy, on real predictions.

The predictions are the logits that the CGNet authors' code gives for three CamVid frames.
"""

import types

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from sklearn import metrics as sklearn
from torchmetrics.functional import classification as torchmetrics

from jaxseg.evaluation import evaluate
from jaxseg.evaluation.class_map import make_class_map
from jaxseg.layers.resize import resize_logits
from jaxseg.metrics import mean_over_classes
from jaxseg.metrics.boundary import TRIMAP_WIDTHS
from jaxseg.types import Preprocess

# Cityscapes' classes → CamVid's, as in docs/report.md.
PAIRS = (
  *((10, 0), (2, 1), (3, 1), (5, 2), (0, 3), (1, 4), (8, 5), (9, 5), (6, 6), (7, 6), (4, 7)),
  *((13, 8), (14, 8), (15, 8), (11, 9), (12, 10), (17, 10), (18, 10)),
)
TABLE = make_class_map(PAIRS, num_model=19, num_data=11)
FRAMES = ("07959", "08059", "08159")


@pytest.fixture(scope="module")
def real(shared):
  """The report, and what it is of: labels and predictions b h w, probabilities b h w 11 in float64."""
  logits, labels = [], []
  for frame in FRAMES:
    name = shared / "weights" / "cgnet" / f"camvid_val_0016E5_{frame}__logits_os8.npy"
    logits.append(np.load(name).transpose(1, 2, 0))
    label = cv2.imread(str(shared / f"data/camvid/valannot/0016E5_{frame}.png"), cv2.IMREAD_GRAYSCALE)
    labels.append(np.where(label == 11, 255, label))
  logits, labels = np.stack(logits), np.stack(labels)
  batch = {"image": np.zeros((*labels.shape, 3), np.uint8), "label": labels, "id": np.array(FRAMES, object)}
  report = evaluate(
    lambda variables, image: variables["logits"],
    {"logits": logits},
    [batch],
    num_classes=11,
    preprocess=Preprocess(),
    details=True,
    class_map=TABLE,
  )
  full = np.asarray(resize_logits(logits, labels.shape[1:]), np.float64)
  full[..., [i for i, to in enumerate(TABLE) if to < 0]] = -np.inf
  probabilities = np.exp(full - full.max(-1, keepdims=True))
  probabilities = probabilities / probabilities.sum(-1, keepdims=True) @ np.eye(12)[list(TABLE)][:, :11]
  pred = np.asarray(TABLE)[full.argmax(-1)]
  known = labels != 255
  return types.SimpleNamespace(
    report=report, labels=labels, pred=pred, known=known, probabilities=probabilities, truth=labels[known]
  )


def test_confusion_matrix_and_its_ratios(real):
  truth, found = real.truth, real.pred[real.known]
  np.testing.assert_array_equal(real.report.matrix, sklearn.confusion_matrix(truth, found, labels=range(11)))
  columns = real.report.by_class()
  precision, recall, f1, pixels = sklearn.precision_recall_fscore_support(
    truth, found, labels=range(11), zero_division=np.nan
  )
  occurs = pixels > 0
  assert 8 <= occurs.sum()
  iou = sklearn.jaccard_score(truth, found, labels=range(11), average=None, zero_division=0)
  iou[~np.isin(np.arange(11), np.union1d(truth, found))] = np.nan
  for name, expected in (("IoU", iou), ("Precision", precision), ("Recall", recall), ("F1", f1)):
    np.testing.assert_allclose(columns[name], expected, rtol=1e-12, err_msg=name)
  scores = real.report.scalars()
  assert scores["mIoU"] == pytest.approx(np.nanmean(iou), rel=1e-12)
  assert scores["aAcc"] == pytest.approx(sklearn.accuracy_score(truth, found), rel=1e-12)
  assert scores["mAcc"] == pytest.approx(recall[occurs].mean(), rel=1e-12)
  assert real.report.mdice == pytest.approx(np.nanmean(f1), rel=1e-12)
  weighted = sklearn.jaccard_score(truth, found, average="weighted", zero_division=0)
  assert scores["fwIoU"] == pytest.approx(weighted, rel=1e-12)
  # The rule of the CGNet paper's code: classes without a hit are left out.
  assert mean_over_classes(iou, absent="cgnet") == pytest.approx(
    iou[np.nan_to_num(iou) > 0].mean(), rel=1e-12
  )
  ids = torch.from_numpy(found.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
  other = torchmetrics.multiclass_jaccard_index(*ids, num_classes=11, average="none").numpy()
  np.testing.assert_allclose(np.nan_to_num(columns["IoU"]), other, rtol=1e-6)


def test_mean_iou_of_each_image(real):
  expected = [
    np.mean(sklearn.jaccard_score(label[k], pred[k], average=None))
    for label, pred, k in zip(real.labels, real.pred, real.known, strict=True)
  ]
  np.testing.assert_allclose(real.report.details.image_iou(), expected, rtol=1e-12)
  assert real.report.scalars()["image_mIoU"] == pytest.approx(np.mean(expected), rel=1e-12)


def test_loss(real):
  expected = sklearn.log_loss(real.truth, real.probabilities[real.known], labels=range(11))
  assert real.report.scalars()["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_calibration_error(real):
  """By its definition in float64, and torchmetrics on as many pixels as its float32 sums can bear.

  torchmetrics adds confidences in float32: beyond 2^19 pixels near 1 a bin's sum grows in steps of 1/16.
  Its own program in float64 gives the same as this test, whatever the number of pixels.
  """
  confidence = np.take_along_axis(real.probabilities, real.pred[..., None], -1)[..., 0][real.known]
  right = real.pred[real.known] == real.truth
  place, edges = np.zeros(confidence.shape, int), np.linspace(0, 1, 16)
  for i in range(15):
    place[(confidence > edges[i]) & (confidence <= edges[i + 1])] = i
  bins = [place == i for i in np.unique(place)]
  expected = sum(b.mean() * abs(right[b].mean() - confidence[b].mean()) for b in bins)
  assert real.report.scalars()["ECE"] == pytest.approx(expected, abs=2e-6)
  counts = real.report.details.calibration
  assert counts[:, 1].sum() == len(right)
  for found, weights in ((counts[:, 1], None), (counts[:, 0], right)):
    # A pixel on an edge may be on its other side in float32.
    np.testing.assert_allclose(found, np.bincount(place, weights, minlength=15), atol=2)

  # Where the largest class is the mapped one: torchmetrics takes the largest probability for the prediction.
  same = real.probabilities[real.known].argmax(-1) == real.pred[real.known]
  few = np.random.default_rng(0).permutation(np.flatnonzero(same))[:16_384]
  theirs = torchmetrics.multiclass_calibration_error(
    torch.from_numpy(real.probabilities[real.known][few]),
    torch.from_numpy(real.truth[few].astype(np.int64)),
    num_classes=11,
    n_bins=15,
    norm="l1",
  )
  bins = [place[few] == i for i in np.unique(place[few])]
  ours = sum(b.mean() * abs(right[few][b].mean() - confidence[few][b].mean()) for b in bins)
  assert float(theirs) == pytest.approx(ours, abs=1e-5)


def test_boundary_iou(real):
  """The paper's: the mask without its erosion by 2 % of the diagonal, in a frame of zeros."""
  counts = np.zeros((11, 3), np.int64)
  steps = round(0.02 * np.hypot(*real.labels.shape[1:]))
  for label, pred, known in zip(real.labels, real.pred, real.known, strict=True):
    for i in range(11):
      masks = [((x == i) & known).astype(np.uint8) for x in (label, pred)]
      framed = [cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0) for mask in masks]
      eroded = [cv2.erode(x, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1] for x in framed]
      truth, found = (mask - less > 0 for mask, less in zip(masks, eroded, strict=True))
      counts[i] += (truth & found).sum(), truth.sum(), found.sum()
  np.testing.assert_array_equal(real.report.details.boundary, counts)
  either = counts[:, 1] + counts[:, 2] - counts[:, 0]
  iou = np.divide(counts[:, 0], either, out=np.full(11, np.nan), where=either > 0)
  assert real.report.scalars()["boundary_mIoU"] == pytest.approx(np.nanmean(iou), rel=1e-12)


def test_trimap_iou(real):
  """Pixels by their chessboard distance to the nearest pixel of another label."""
  found = {width: np.zeros((11, 11), np.int64) for width in TRIMAP_WIDTHS}
  for label, pred, known in zip(real.labels, real.pred, real.known, strict=True):
    distance = np.full(label.shape, np.inf)
    for i in np.unique(label):
      inside = scipy.ndimage.distance_transform_cdt(label == i, metric="chessboard")
      distance[label == i] = inside[label == i]
    for width, matrix in found.items():
      band = known & (distance <= width)
      matrix += sklearn.confusion_matrix(label[band], pred[band], labels=range(11))
  for width, matrix in found.items():
    hits = np.diag(matrix)
    either = matrix.sum(0) + matrix.sum(1) - hits
    iou = np.divide(hits, either, out=np.full(11, np.nan), where=either > 0)
    assert real.report.trimap_miou()[width] == pytest.approx(np.nanmean(iou), rel=1e-12), width
