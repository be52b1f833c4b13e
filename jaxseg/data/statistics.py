"""Label statistics of a split, and the class weights that recipes derive from them."""

import numpy as np
from jaxtyping import Float, Int

from jaxseg.data.source import DataError, Source
from jaxseg.types import IGNORE_LABEL


def label_histogram(
  source: Source, *, num_classes: int, samples: int | None = None
) -> Int[np.ndarray, "{num_classes}"]:
  """Pixels of each class over a split, int64; pixels without a label are not counted.

  Args:
    source: the split.
    num_classes: ids at or above it are not counted.
    samples: how many examples to look at, evenly spaced; None is all.
  """
  total = np.zeros(num_classes, np.int64)
  count = len(source) if samples is None else min(samples, len(source))
  for index in (number * len(source) // count for number in range(count)):
    label = source[index]["label"]
    counts = np.bincount(label.reshape(-1), minlength=IGNORE_LABEL + 1)
    total += counts[:num_classes]
  return total


def class_weights(histogram: Int[np.ndarray, "k"], *, offset: float = 1.10) -> Float[np.ndarray, "k"]:
  """1 / ln(offset + p), where p is a class's share of the labelled pixels.

  The rule of ENet (https://arxiv.org/abs/1606.02147, offset 1.02); CGNet uses 1.10.

  Raises:
    DataError: the histogram is empty.
  """
  total = histogram.sum()
  if total <= 0:
    raise DataError("the label histogram counts no pixel; class weights need at least one labelled pixel")
  return 1.0 / np.log(offset + histogram / total)
