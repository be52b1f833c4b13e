"""Labels brought to the logits: Pillow's nearest neighbour, or every eighth pixel as Caffe's DeepLab."""

import numpy as np
import pytest

from jaxseg.ops.resize import resize_labels


@pytest.mark.parametrize(
  ("before", "after", "align_corners", "index"),
  [
    (5, 2, False, [1, 3]),  # centres at 1.25 and 3.75
    (4, 2, False, [1, 3]),  # on the border between two pixels it is the later one,
    (500, 13, False, [19, 57, 96, 134, 173, 211, 249, 288, 326, 365, 403, 442, 480]),  # but for rounding
    (3, 6, False, [0, 0, 1, 1, 2, 2]),
    (17, 3, True, [0, 8, 16]),
    (6, 3, True, [0, 3, 5]),
    (4, 1, True, [0]),
  ],
)
def test_by_hand(before, after, align_corners, index):
  line = np.arange(before)
  labels = 1000 * line[:, None] + line  # a pixel's number says where it was
  small = resize_labels(labels, (after, after), align_corners=align_corners)
  assert small.tolist() == (1000 * np.array(index)[:, None] + index).tolist()
  assert resize_labels(labels[None], (after, before)).shape == (1, after, before)
