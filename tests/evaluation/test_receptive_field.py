"""Effective receptive fields of networks whose fields can be worked out."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.evaluation.receptive_field import (
  drawn_images,
  luo_size,
  middle_of,
  places_of,
  receptive_fields,
  side_of_share,
)
from jaxseg.types import Preprocess

PLAIN = Preprocess((0.0,) * 3, (1.0,) * 3)


class Boxes(nn.Module):
  """Means over 3 x 3 pixels: once, twice, and of every second pixel."""

  @nn.compact
  def __call__(self, image, *, train):
    pool = lambda x, s=1: nn.avg_pool(x, (3, 3), (s, s), "SAME")  # noqa: E731
    once = pool(image)
    return {"stage1": once, "stage2": pool(once), "stage3": pool(image, 2)}


def fields(size=(32, 32)):
  images = drawn_images(2, size)
  places = ("stage1", "stage2", "stage3")
  return receptive_fields(Boxes(), {}, images, preprocess=PLAIN, places=places)


def test_the_fields_of_means():
  found = fields()
  expected = np.zeros((32, 32))
  expected[15:18, 15:18] = 1 / 9
  np.testing.assert_allclose(found["stage1"], expected, atol=1e-6)
  triangle = np.array([1, 2, 3, 2, 1]) / 9
  np.testing.assert_allclose(found["stage2"][14:19, 14:19], np.outer(triangle, triangle), atol=1e-6)
  assert found["stage2"].sum() == pytest.approx(1, abs=1e-5)
  assert luo_size(found["stage1"]) == 3 and luo_size(found["stage2"]) == 5
  assert side_of_share(found["stage1"], 0.95, (16, 16)) == 3
  assert side_of_share(found["stage1"], 0.1, (16, 16)) == 1
  assert side_of_share(found["stage2"], 0.5, (16, 16)) == 3


def test_the_middle_of_a_coarse_map():
  assert middle_of((32, 32), (16, 16, 3)) == (17, 17)
  assert places_of(Boxes(), {}, (32, 32))["stage3"] == (16, 16, 3)
  rows, columns = np.nonzero(fields()["stage3"] > 1e-8)
  assert abs(rows.mean() - 17) <= 1 and abs(columns.mean() - 17) <= 1


def test_what_is_refused():
  with pytest.raises(UserError, match="Boxes has no 'stage4'; did you mean 'stage"):
    receptive_fields(Boxes(), {}, drawn_images(1, (32, 32)), preprocess=PLAIN, places=["stage4"])
  with pytest.raises(UserError, match=r"sizes \[\]; expected at least one image"):
    receptive_fields(Boxes(), {}, [], preprocess=PLAIN, places=["stage1"])


def test_a_softmax_over_all_pixels_sees_everything():
  class Attention(nn.Module):
    @nn.compact
    def __call__(self, image, *, train):
      weights = jax.nn.softmax(image.sum(-1).reshape(image.shape[0], -1) * 1e-3)
      mean = (weights[..., None] * image.reshape(image.shape[0], -1, 3)).sum(1)
      return {"stage1": image * 0 + mean[:, None, None]}

  (field,) = receptive_fields(
    Attention(), {}, drawn_images(1, (32, 40)), preprocess=PLAIN, places=["stage1"]
  ).values()
  assert (field > 0).all() and side_of_share(field, 0.95, (16, 20)) > 32
