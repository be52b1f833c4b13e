"""Metrics: integer counts on the device, ratios on the host."""

from jaxseg.metrics.boundary import boundary_counts, trimap_counts
from jaxseg.metrics.calibration import (
  calibration_counts,
  expected_calibration_error,
  loss_counts,
  mean_loss,
  reliability,
)
from jaxseg.metrics.confusion import confusion_matrices, confusion_matrix
from jaxseg.metrics.ratios import (
  accuracy_per_class,
  dice_per_class,
  frequency_weighted_iou,
  iou_of_counts,
  iou_per_class,
  mean_accuracy,
  mean_dice,
  mean_iou,
  mean_over_classes,
  pixel_accuracy,
  pixels_per_class,
  precision_per_class,
)
from jaxseg.metrics.topk import topk_hits

__all__ = [
  "accuracy_per_class",
  "boundary_counts",
  "calibration_counts",
  "confusion_matrices",
  "confusion_matrix",
  "dice_per_class",
  "expected_calibration_error",
  "frequency_weighted_iou",
  "iou_of_counts",
  "iou_per_class",
  "loss_counts",
  "mean_accuracy",
  "mean_dice",
  "mean_iou",
  "mean_loss",
  "mean_over_classes",
  "pixel_accuracy",
  "pixels_per_class",
  "precision_per_class",
  "reliability",
  "topk_hits",
  "trimap_counts",
]
