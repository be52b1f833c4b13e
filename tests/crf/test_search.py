"""The search finds the setting that is best by construction."""

import numpy as np
import pytest

from jaxseg.crf import grid_search, mean_field, refined_grid


def test_finds_the_setting_that_made_the_labels(case):
  """Labels are the CRF's own answer at one setting of the grid; no other setting gives them all back."""
  unary, image = case
  made = mean_field(unary, image, ((3, None, 3), (8.0, 20.0, 6.0)), 5, "exact")
  label = np.argmax(np.asarray(made), axis=-1).astype(np.uint8)
  label[0, 0] = 255
  seen = []
  found = grid_search(
    [unary, unary],
    [image, image],
    iter([label, label]),
    w1=(0.5, 6.0),
    sxy=(8.0, 30.0),
    srgb=(20.0,),
    steps=5,
    method="exact",
    progress=seen.append,
  )
  assert seen == [1, 2]
  assert found.setting == (6.0, 8.0, 20.0)
  assert found.kernels == ((3.0, None, 3.0), (8.0, 20.0, 6.0))
  assert found.miou == 1.0 == max(found.tried.values())
  assert len(found.tried) == 4 and sorted(found.tried.values())[-2] < 1
  assert found.without < 1


def test_refined_grid_lies_between_the_neighbours():
  assert refined_grid((3, 4, 5), 4, points=1) == (3.5, 4.0, 4.5)
  assert refined_grid((3, 4, 5), 3, points=1) == (3.0, 3.5)
  assert refined_grid((3, 6), 6) == (4.0, 5.0, 6.0)
  assert refined_grid((5,), 5) == (5.0,)


def test_empty_grid_and_no_examples_are_sentences(case):
  with pytest.raises(ValueError, match="grid is empty"):
    grid_search([], [], [], w1=())
  with pytest.raises(ValueError, match="no examples"):
    grid_search([], [], [])
