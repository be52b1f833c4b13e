"""Ratios of a confusion matrix `[truth, prediction]`, in float64 on the host.

Counts must cover the whole split: the IoU of sums is not the mean of IoUs.
"""

import numpy as np
from jaxtyping import Float, Real

from jaxseg.types import AnyArray


def iou_per_class(matrix: Real[AnyArray, "k k"]) -> Float[np.ndarray, "k"]:
  """Intersection over union of every class, in [0, 1]; NaN for a class in neither truth nor prediction."""
  matrix = _counts(matrix)
  hits = np.diag(matrix)
  return _divide(hits, matrix.sum(0) + matrix.sum(1) - hits)


def accuracy_per_class(matrix: Real[AnyArray, "k k"]) -> Float[np.ndarray, "k"]:
  """Share of every class's pixels that were found (recall), in [0, 1]; NaN for a class not in the truth."""
  matrix = _counts(matrix)
  return _divide(np.diag(matrix), matrix.sum(1))


def dice_per_class(matrix: Real[AnyArray, "k k"]) -> Float[np.ndarray, "k"]:
  """Dice coefficient of every class, which is its F1 score, in [0, 1]; NaN as in `iou_per_class`.

  Twice the intersection over the sum of truth and prediction.
  """
  matrix = _counts(matrix)
  return _divide(2 * np.diag(matrix), matrix.sum(0) + matrix.sum(1))


def mean_iou(matrix: Real[AnyArray, "k k"]) -> float:
  """Mean IoU over the classes that occur in truth or prediction, in [0, 1]; NaN when nothing was counted."""
  return _mean(iou_per_class(matrix))


def mean_dice(matrix: Real[AnyArray, "k k"]) -> float:
  """Mean Dice coefficient (F1) over the classes that occur in truth or prediction, in [0, 1]."""
  return _mean(dice_per_class(matrix))


def mean_accuracy(matrix: Real[AnyArray, "k k"]) -> float:
  """Mean accuracy over the classes that occur in the truth, in [0, 1]; NaN when nothing was counted."""
  return _mean(accuracy_per_class(matrix))


def pixel_accuracy(matrix: Real[AnyArray, "k k"]) -> float:
  """Share of all counted pixels that are right, in [0, 1]; NaN when nothing was counted."""
  matrix = _counts(matrix)
  return float(_divide(np.trace(matrix), matrix.sum()))


def _counts(matrix) -> np.ndarray:
  return np.asarray(matrix, np.float64)  # exact for counts below 2^53


def _divide(part, whole):
  return np.divide(part, whole, out=np.full_like(np.asarray(part), np.nan), where=np.asarray(whole) > 0)


def _mean(values: np.ndarray) -> float:
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else float("nan")
