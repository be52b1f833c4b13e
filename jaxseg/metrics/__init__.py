"""Metrics: integer counts on the device, ratios on the host."""

from jaxseg.metrics.confusion import confusion_matrix
from jaxseg.metrics.ratios import (
  accuracy_per_class,
  dice_per_class,
  iou_per_class,
  mean_accuracy,
  mean_dice,
  mean_iou,
  pixel_accuracy,
)
from jaxseg.metrics.topk import topk_hits

__all__ = [
  "accuracy_per_class",
  "confusion_matrix",
  "dice_per_class",
  "iou_per_class",
  "mean_accuracy",
  "mean_dice",
  "mean_iou",
  "pixel_accuracy",
  "topk_hits",
]
