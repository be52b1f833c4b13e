"""The result of an evaluation: one matrix, and what it says."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.evaluation.counts import Details
from jaxseg.metrics import (
  accuracy_per_class,
  dice_per_class,
  expected_calibration_error,
  frequency_weighted_iou,
  iou_of_counts,
  iou_per_class,
  mean_accuracy,
  mean_dice,
  mean_iou,
  mean_loss,
  mean_over_classes,
  pixel_accuracy,
  pixels_per_class,
  precision_per_class,
  reliability,
)
from jaxseg.metrics.boundary import TRIMAP_WIDTHS

_HEADS = {"Precision": "Prec", "BoundaryIoU": "BIoU"}


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
  """Scores of a split, each in [0, 1] and derived from `matrix`.

  Attributes:
    matrix: int64 [truth, prediction], pixels; where a pixel may have several classes [class, truth,
      prediction] of no and yes.
    canvases: 0 for the exact rule; else to how many canvases the images were padded, as evaluations in the
      course of training do: their scores differ from the exact rule's.
    details: further counts; None where only the matrix was counted.
    absent: which classes a mean over classes leaves out, see `jaxseg.metrics.mean_over_classes`.
  """

  matrix: np.ndarray
  canvases: int = 0
  details: Details | None = None
  absent: str = "mmsegmentation"

  @property
  def note(self) -> str:
    """What to know about the scores beside the rule; "" for the exact rule."""
    if not self.canvases:
      return ""
    return f"images padded to {self.canvases} canvases; the exact rule's scores differ"

  @property
  def pixels(self) -> int:
    """Labelled pixels."""
    return int(self.matrix.sum()) // (len(self.matrix) if self.matrix.ndim == 3 else 1)

  @property
  def miou(self) -> float:
    """Mean IoU over the classes that `absent` leaves: those that occur in truth or prediction."""
    return mean_iou(self.matrix, absent=self.absent)

  @property
  def mdice(self) -> float:
    """Mean Dice coefficient, or F1 score, over the same classes."""
    return mean_dice(self.matrix, absent=self.absent)

  @property
  def macc(self) -> float:
    """Mean accuracy over the classes that occur in the truth."""
    return mean_accuracy(self.matrix)

  @property
  def aacc(self) -> float:
    """Share of the labelled pixels that are right."""
    return pixel_accuracy(self.matrix)

  @property
  def fwiou(self) -> float:
    """IoU weighted by the classes' shares of the truth."""
    return frequency_weighted_iou(self.matrix)

  def boundary_iou(self) -> np.ndarray | None:
    """Boundary IoU of every class; None without details."""
    return None if self.details is None else iou_of_counts(self.details.boundary)

  def trimap_miou(self) -> dict[int, float]:
    """{pixels on each side of a contour: mean IoU there}; {} without details."""
    if self.details is None:
      return {}
    scores = iou_of_counts(self.details.trimap)
    return {
      width: mean_over_classes(row, absent=self.absent)
      for width, row in zip(TRIMAP_WIDTHS, scores, strict=True)
    }

  def scalars(self) -> dict[str, float]:
    """{"mIoU", "mAcc", "aAcc"}, and those of `details`; the first is what a run is judged by."""
    return {"mIoU": self.miou, "mAcc": self.macc, "aAcc": self.aacc, **self._detailed()}

  def _detailed(self) -> dict[str, float]:
    if self.details is None:
      return {}
    scores = {
      "fwIoU": self.fwiou,
      "boundary_mIoU": mean_over_classes(self.boundary_iou(), absent=self.absent),
    }
    if self.details.images:
      scores["image_mIoU"] = float(np.nanmean(self.details.image_iou(self.absent)))
    if self.details.calibration is not None:
      scores |= {
        "ECE": expected_calibration_error(self.details.calibration),
        "val_loss": mean_loss(self.details.loss),
      }
    return scores

  def table(self, classes: Sequence[str] | None = None) -> str:
    """One line a class (IoU, accuracy, precision, F1, share of the labelled pixels), then the means."""
    classes = self._names(classes)
    width = max(5, *map(len, classes))
    share = pixels_per_class(self.matrix) / max(self.pixels, 1)
    shown = self.by_class()
    shown = {name: shown[name] for name in ("IoU", "Acc", "Precision", "F1", "BoundaryIoU") if name in shown}
    heads = "  ".join(f"{_HEADS.get(name, name):>6}" for name in shown)
    lines = [f"{'class':<{width}}  {heads}  pixels"]
    for i, name in enumerate(classes):
      scores = "  ".join(_score(values[i]) for values in shown.values())
      lines.append(f"{name:<{width}}  {scores}  {share[i]:6.2%}")
    lines.append(f"{'mean':<{width}}  {_score(self.miou)}  {_score(self.macc)}")
    lines.append(f"mIoU {self.miou:.4f}  mAcc {self.macc:.4f}  aAcc {self.aacc:.4f}  mDice {self.mdice:.4f}")
    if self.details is not None:
      lines.append("  ".join(f"{name} {value:.4f}" for name, value in self._detailed().items()))
    return "\n".join(lines)

  def to_dict(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Plain values for JSON; a score that is not defined is None."""
    classes = self._names(classes)
    columns = self.by_class()
    details: dict[str, Any] = {}
    if self.details is not None:
      details["trimap_mIoU"] = {str(width): _plain(score) for width, score in self.trimap_miou().items()}
      if self.details.calibration is not None:
        curve = zip(*reliability(self.details.calibration), strict=True)
        names = ("confidence", "accuracy", "share")
        details["calibration"] = [dict(zip(names, map(_plain, point), strict=True)) for point in curve]
      details["image_scores"] = [
        {"index": image.index, **({"id": image.name} if image.name else {}), "mIoU": _plain(score)}
        for image, score in zip(self.details.images, self.details.image_iou(self.absent), strict=True)
      ]
    return {
      **{name: _plain(value) for name, value in self.scalars().items()},
      "mDice": _plain(self.mdice),
      "fwIoU": _plain(self.fwiou),
      "absent_classes": self.absent,
      "pixels": self.pixels,
      **({"canvases": self.canvases, "note": self.note} if self.canvases else {}),
      "classes": [
        {"name": name, **{column: _plain(values[i]) for column, values in columns.items()}}
        for i, name in enumerate(classes)
      ],
      **details,
      "matrix": self.matrix.tolist(),
    }

  def by_class(self) -> dict[str, np.ndarray]:
    """{name of a score: its value for every class, NaN where it is not defined}; "F1" is Dice."""
    columns = {
      "IoU": iou_per_class(self.matrix),
      "Acc": accuracy_per_class(self.matrix),
      "Precision": precision_per_class(self.matrix),
      "Recall": accuracy_per_class(self.matrix),
      "F1": dice_per_class(self.matrix),
      "Dice": dice_per_class(self.matrix),
    }
    if self.details is not None:
      columns["BoundaryIoU"] = self.boundary_iou()
    return columns

  def to_json(self, classes: Sequence[str] | None = None) -> str:
    """`to_dict` as text."""
    return json.dumps(self.to_dict(classes), allow_nan=False)

  def _names(self, classes: Sequence[str] | None) -> list[str]:
    classes = [str(i) for i in range(len(self.matrix))] if classes is None else list(classes)
    if len(classes) != len(self.matrix):
      raise UserError(f"there are {len(classes)} class names for a matrix of {len(self.matrix)} classes")
    return classes


def _score(value: float) -> str:
  return f"{'-':>6}" if np.isnan(value) else f"{value:6.4f}"


def _plain(value: float) -> float | None:
  return None if np.isnan(value) else float(value)
