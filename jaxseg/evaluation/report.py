"""The result of an evaluation: one matrix, and what it says."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.metrics import (
  accuracy_per_class,
  dice_per_class,
  iou_per_class,
  mean_accuracy,
  mean_dice,
  mean_iou,
  pixel_accuracy,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
  """Scores of a split, each in [0, 1] and derived from `matrix`.

  Attributes:
    matrix: int64 [truth, prediction], pixels.
    canvases: 0 for the exact rule; else to how many canvases the images were padded, as evaluations in the
      course of training do: their scores differ from the exact rule's.
  """

  matrix: np.ndarray
  canvases: int = 0

  @property
  def note(self) -> str:
    """What to know about the scores beside the rule; "" for the exact rule."""
    if not self.canvases:
      return ""
    return f"images padded to {self.canvases} canvases; the exact rule's scores differ"

  @property
  def miou(self) -> float:
    """Mean IoU over the classes that occur in truth or prediction."""
    return mean_iou(self.matrix)

  @property
  def mdice(self) -> float:
    """Mean Dice coefficient, or F1 score, over the same classes."""
    return mean_dice(self.matrix)

  @property
  def macc(self) -> float:
    """Mean accuracy over the classes that occur in the truth."""
    return mean_accuracy(self.matrix)

  @property
  def aacc(self) -> float:
    """Share of the labelled pixels that are right."""
    return pixel_accuracy(self.matrix)

  def scalars(self) -> dict[str, float]:
    """{"mIoU", "mAcc", "aAcc"}, for logs and for the choice of the best checkpoint."""
    return {"mIoU": self.miou, "mAcc": self.macc, "aAcc": self.aacc}

  def table(self, classes: Sequence[str] | None = None) -> str:
    """One line a class (IoU, accuracy, share of the labelled pixels), then the means."""
    classes = self._names(classes)
    width = max(5, *map(len, classes))
    share = self.matrix.sum(1) / max(self.matrix.sum(), 1)
    lines = [f"{'class':<{width}}     IoU     Acc  pixels"]
    for row in zip(classes, iou_per_class(self.matrix), accuracy_per_class(self.matrix), share, strict=True):
      lines.append(f"{row[0]:<{width}}  {_score(row[1])}  {_score(row[2])}  {row[3]:6.2%}")
    lines.append(f"{'mean':<{width}}  {_score(self.miou)}  {_score(self.macc)}")
    lines.append(f"mIoU {self.miou:.4f}  mAcc {self.macc:.4f}  aAcc {self.aacc:.4f}  mDice {self.mdice:.4f}")
    return "\n".join(lines)

  def to_dict(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Plain values for JSON; a score that is not defined is None."""
    classes = self._names(classes)
    scores = (iou_per_class(self.matrix), accuracy_per_class(self.matrix), dice_per_class(self.matrix))
    return {
      **{name: _plain(value) for name, value in self.scalars().items()},
      "mDice": _plain(self.mdice),
      "pixels": int(self.matrix.sum()),
      **({"canvases": self.canvases, "note": self.note} if self.canvases else {}),
      "classes": [
        {"name": name, "IoU": _plain(iou), "Acc": _plain(acc), "Dice": _plain(dice)}
        for name, iou, acc, dice in zip(classes, *scores, strict=True)
      ],
      "matrix": self.matrix.tolist(),
    }

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
