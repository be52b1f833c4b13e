"""Many images, few compilations, and the result of `mean_field`; settings that cannot be are sentences."""

import numpy as np
import pytest

from jaxseg.crf import Refiner, Settings, mean_field, refined_grid
from jaxseg.crf.rooms import SharedRooms
from tests.crf.conftest import KERNELS


def test_refiner_is_mean_field(case):
  """Its pixels and vertices are padded: a smaller picture shares the larger one's sizes."""
  refiner = Refiner(steps=3)
  for unary, image in (case, (case[0][:, 1:], case[1][:, 1:])):
    want = mean_field(unary, image, KERNELS, 3, "lattice")
    np.testing.assert_allclose(refiner(unary, image, KERNELS), want, atol=1e-6)


def test_shared_rooms_are_few_and_suffice():
  rooms = SharedRooms()
  rng = np.random.default_rng(0)
  counts = rng.integers(20_000, 400_000, 300)
  given = {int(count): rooms.vertices(1, int(count)) for count in counts}
  assert all(count <= room <= 2 * count for count, room in given.items())
  assert len(set(given.values())) <= 8
  pixels = {int(count): rooms.pixels(int(count)) for count in counts}
  assert all(count <= room <= 1.25 * count for count, room in pixels.items())
  assert len(set(pixels.values())) <= 24


@pytest.mark.parametrize(
  ("values", "sentence"),
  [
    ({"w1": -1.0}, "w1 is -1.0; expected a weight of 0 or more"),
    ({"srgb": 0.0}, "srgb is 0.0; a standard deviation must be above 0"),
    ({"sxy": float("nan")}, "sxy is nan"),
    ({"steps": 0}, "steps is 0; expected a whole number of updates, 1 or more"),
    ({"method": "fast"}, "method is 'fast'; expected one of exact, lattice"),
  ],
)
def test_settings_that_cannot_be(values, sentence):
  with pytest.raises(ValueError, match=sentence):
    Settings(**values)


def test_refined_grid_goes_beyond_an_end_but_not_to_zero():
  assert refined_grid((30, 40, 50), 50, points=1, beyond=True) == (45.0, 50.0, 55.0)
  assert refined_grid((3, 6), 3, points=1, beyond=True) == (1.5, 3.0, 4.5)
  assert refined_grid((5,), 5, beyond=True) == (5.0,)
