"""Joined splits: every example of each, in order, and nothing beyond."""

import types

import numpy as np
import pytest

from jaxseg import data

DATA = types.SimpleNamespace(name="synthetic", classes=(), image_size=(32, 48), num_train=3, num_val=2)


def test_a_joined_split_is_its_parts_one_after_another():
  joined = data.open_split(DATA, "train+val")
  parts = [data.open_split(DATA, split) for split in ("train", "val")]
  assert len(joined) == 5 and joined.size(4) == (32, 48)
  expected = [source[i] for source in parts for i in range(len(source))]
  for i, example in enumerate(expected):
    assert joined[i]["id"] == example["id"]
    assert np.array_equal(joined[i]["image"], example["image"])
  for index in (-1, 5):
    with pytest.raises(IndexError, match=f"index {index} is outside the 5 examples"):
      joined[index]


def test_each_part_has_to_exist():
  with pytest.raises(data.DataError, match="no split 'vla'"):
    data.open_split(DATA, "train+vla")
