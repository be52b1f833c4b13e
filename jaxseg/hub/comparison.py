"""What an exported file gives, beside what the model gives."""

import dataclasses

# What a file has to give.
LABELS_EQUAL = 0.999
PROBABILITIES_WITHIN = 1e-3


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A file and `Net` on the same images.

  Attributes:
    labels_equal: share of pixels with the same class, the least of all images.
    largest_difference: of probabilities; None where labels are exported.
    images: how many.
    seconds: of the file's runtime for the first image, the quickest of three runs after the first.
    seconds_of_net: of `net` for the same.
    bytes: of the model file.
    labels_kept: of `weights="int8"`, the share of pixels that have the class of the weights before rounding.
  """

  labels_equal: float
  largest_difference: float | None
  images: int
  seconds: float
  seconds_of_net: float
  bytes: int
  labels_kept: float | None = None

  @property
  def agrees(self) -> bool:
    """Labels are equal in 99.9 % of pixels, and probabilities within 1e-3."""
    near = self.largest_difference is None or self.largest_difference <= PROBABILITIES_WITHIN
    return self.labels_equal >= LABELS_EQUAL and near

  def text(self) -> str:
    """In one line."""
    difference = self.largest_difference
    parts = [f"labels equal in {100 * self.labels_equal:.3f} % of pixels of {self.images} images"]
    if difference is not None:
      parts.append(f"largest difference of a probability {difference:.1e}")
    if self.labels_kept is not None:
      parts.append(f"{100 * self.labels_kept:.1f} % have the class of the float32 weights")
    return ", ".join(parts)
