"""Ratios of a confusion matrix `[truth, prediction]`, in float64 on the host.

Where a pixel may have several classes there is one matrix of no and yes for each, `[class, truth,
prediction]`, which every function here takes as well. Counts must cover the whole split: the IoU of sums is
not the mean of IoUs.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Real

from jaxseg.errors import UserError
from jaxseg.types import AnyArray

# Whose rule says which classes a mean over classes leaves out.
AbsentRule = Literal["mmsegmentation", "cgnet"]
ABSENT_RULES: tuple[str, ...] = get_args(AbsentRule)


def iou_per_class(matrix: Real[AnyArray, "*k k"]) -> Float[np.ndarray, "k"]:
  """Intersection over union of every class, in [0, 1]; NaN for a class in neither truth nor prediction."""
  hits, truth, pred = _sums(matrix)
  return _divide(hits, pred + truth - hits)


def accuracy_per_class(matrix: Real[AnyArray, "*k k"]) -> Float[np.ndarray, "k"]:
  """Share of every class's pixels that were found (recall), in [0, 1]; NaN for a class not in the truth."""
  hits, truth, _ = _sums(matrix)
  return _divide(hits, truth)


def precision_per_class(matrix: Real[AnyArray, "*k k"]) -> Float[np.ndarray, "k"]:
  """Share of the pixels given to every class that are its own, in [0, 1]; NaN for a class never predicted."""
  hits, _, pred = _sums(matrix)
  return _divide(hits, pred)


def dice_per_class(matrix: Real[AnyArray, "*k k"]) -> Float[np.ndarray, "k"]:
  """Dice coefficient of every class, which is its F1 score, in [0, 1]; NaN as in `iou_per_class`.

  Twice the intersection over the sum of truth and prediction.
  """
  hits, truth, pred = _sums(matrix)
  return _divide(2 * hits, pred + truth)


def mean_iou(matrix: Real[AnyArray, "*k k"], *, absent: AbsentRule | str = "mmsegmentation") -> float:
  """Mean IoU over classes, in [0, 1]; NaN when nothing was counted.

  Args:
    matrix: of the whole split.
    absent: which classes the mean leaves out, see `mean_over_classes`.

  Raises:
    UserError: no such rule.
  """
  return mean_over_classes(iou_per_class(matrix), absent=absent)


def mean_dice(matrix: Real[AnyArray, "*k k"], *, absent: AbsentRule | str = "mmsegmentation") -> float:
  """Mean Dice coefficient (F1), as `mean_iou`."""
  return mean_over_classes(dice_per_class(matrix), absent=absent)


def mean_over_classes(scores: Float[AnyArray, "k"], *, absent: AbsentRule | str = "mmsegmentation") -> float:
  """The mean of scores by class, each a ratio of hits; NaN where no class is left.

  Args:
    scores: NaN for a class in neither truth nor prediction.
    absent: "mmsegmentation" leaves out a class that occurs in neither; one that is only in the truth or
      only predicted counts as 0. "cgnet", the evaluation of the CGNet paper's code, leaves out every class
      without a single hit, so that its mean is never lower.

  Raises:
    UserError: another rule.
  """
  if absent not in ABSENT_RULES:
    raise UserError(f"absent is {absent!r}; expected {' or '.join(map(repr, ABSENT_RULES))}")
  scores = np.asarray(scores)
  return _mean(np.where(scores > 0, scores, np.nan) if absent == "cgnet" else scores)


def frequency_weighted_iou(matrix: Real[AnyArray, "*k k"]) -> float:
  """IoU of every class weighted by its share of the truth, in [0, 1]; NaN when nothing was counted."""
  pixels = _sums(matrix)[1]
  iou = iou_per_class(matrix)
  return float(_divide(np.sum(pixels[pixels > 0] * iou[pixels > 0]), pixels.sum()))


def iou_of_counts(counts: Real[AnyArray, "*n 3"]) -> Float[np.ndarray, "*n"]:
  """IoU from pixels in both, in the truth and in the prediction, along the last axis; NaN for none."""
  both, truth, pred = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
  return _divide(both, truth + pred - both)


def mean_accuracy(matrix: Real[AnyArray, "*k k"]) -> float:
  """Mean accuracy over the classes that occur in the truth, in [0, 1]; NaN when nothing was counted."""
  return _mean(accuracy_per_class(matrix))


def pixel_accuracy(matrix: Real[AnyArray, "*k k"]) -> float:
  """Share of all counted pixels that are right, in [0, 1]; NaN when nothing was counted."""
  matrix = np.asarray(matrix, np.float64)
  return float(_divide(np.trace(matrix, axis1=-2, axis2=-1).sum(), matrix.sum()))


def pixels_per_class(matrix: Real[AnyArray, "*k k"]) -> Float[np.ndarray, "k"]:
  """Pixels of every class in the truth."""
  return _sums(matrix)[1]


def _sums(matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Pixels of every class in both, in the truth and in the prediction; float64, exact below 2^53."""
  matrix = np.asarray(matrix, np.float64)
  if matrix.ndim == 3:
    return matrix[:, 1, 1], matrix[:, 1].sum(-1), matrix[:, :, 1].sum(-1)
  return np.diag(matrix), matrix.sum(1), matrix.sum(0)


def _divide(part, whole):
  return np.divide(part, whole, out=np.full_like(np.asarray(part), np.nan), where=np.asarray(whole) > 0)


def _mean(values: np.ndarray) -> float:
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else float("nan")
