"""Geometry: equal to resize → crop → flip → pad, to mmsegmentation's own results, and drawn by the rule."""

import cv2
import numpy as np
import pytest

from jaxseg.data import DataError
from jaxseg.data.transforms import (
  Geometry,
  GeometryRule,
  apply_geometry,
  draw_geometry,
  draw_scale,
  make_rule,
)


def _plainly(image, label, geometry, crop_size, fill):
  """The long way round."""
  h, w = geometry.size
  image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
  label = cv2.resize(label, (w, h), interpolation=cv2.INTER_NEAREST)
  window = np.s_[geometry.top : geometry.top + crop_size[0], geometry.left : geometry.left + crop_size[1]]
  image, label = image[window], label[window]
  if geometry.flip:
    image, label = image[:, ::-1], label[:, ::-1]
  bottom, right = crop_size[0] - image.shape[0], crop_size[1] - image.shape[1]
  image = np.stack(
    [np.pad(image[..., c], ((0, bottom), (0, right)), constant_values=fill[c]) for c in range(3)], axis=-1
  )
  return image, np.pad(label, ((0, bottom), (0, right)), constant_values=255)


def test_equals_resize_then_crop():
  rng = np.random.default_rng(0)
  rule = GeometryRule(crop_size=(65, 96), scale_range=(0.4, 2.5))
  cut = padded = 0
  for _ in range(60):
    shape = tuple(int(s) for s in rng.integers(30, 200, size=2))
    # Noise is the worst case: neighbours differ by up to 255.
    image, label = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 256, shape, np.uint8)
    geometry = draw_geometry(rng, shape, rule)
    got = apply_geometry(image, label, geometry, crop_size=rule.crop_size, fill=(1, 2, 3))
    want = _plainly(image, label, geometry, rule.crop_size, (1, 2, 3))
    np.testing.assert_array_equal(got[1], want[1])
    assert np.abs(got[0].astype(int) - want[0]).max() <= 1
    cut += geometry.size[0] > 65 or geometry.size[1] > 96
    padded += geometry.size[0] < 65 or geometry.size[1] < 96
  assert min(cut, padded) > 10


def test_scale_one_copies_pixels():
  rng = np.random.default_rng(1)
  image, label = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.integers(0, 9, (40, 50), np.uint8)
  got = apply_geometry(image, label, Geometry((40, 50), top=3, left=7, flip=True), crop_size=(20, 30))
  np.testing.assert_array_equal(got[0], image[3:23, 7:37][:, ::-1])
  np.testing.assert_array_equal(got[1], label[3:23, 7:37][:, ::-1])


@pytest.mark.parametrize("case", range(8))
def test_mmseg(shared, case):
  stored = np.load(shared / "parity" / "transforms" / f"augment-{case}.npz")
  image, crop = stored["image"], int(stored["crop"])
  # mmcv: the larger factor at which both sides fit the scale.
  factor = min(max(stored["scale"]) / max(image.shape[:2]), min(stored["scale"]) / min(image.shape[:2]))
  size = tuple(int(side * factor + 0.5) for side in image.shape[:2])
  top, left = (int(v) for v in stored["offset"])
  geometry = Geometry(size, top=top, left=left, flip=bool(stored["flip"]))
  got = apply_geometry(image, stored["label"], geometry, crop_size=(crop, crop))
  h, w = stored["geometry_label"].shape
  np.testing.assert_array_equal(got[1][:h, :w], stored["geometry_label"])
  assert (got[1][h:] == 255).all() and (got[1][:, w:] == 255).all()
  assert np.abs(got[0][:h, :w].astype(int) - stored["geometry_image"]).max() <= 1


def test_draws_follow_the_rule():
  rng = np.random.default_rng(0)
  rule = GeometryRule(crop_size=(50, 60), scale_range=(0.5, 2.0), flip=0.25)
  draws = [draw_geometry(rng, (100, 80), rule) for _ in range(10_000)]
  heights = np.array([d.size[0] for d in draws])
  # Uniform: the mean of U(.5, 2) is 1.25, its deviation .433.
  assert heights.mean() == pytest.approx(125, abs=3 * 43.3 / 100)
  assert (heights.min(), heights.max()) == (50, 200)
  assert np.mean([d.flip for d in draws]) == pytest.approx(0.25, abs=0.015)
  where = np.array([d.top / (d.size[0] - 50) for d in draws if d.size[0] > 90])
  assert (where.min(), where.max()) == (0, 1)
  assert where.mean() == pytest.approx(0.5, abs=0.015)
  assert all(d.left == 0 for d in draws if d.size[1] <= 60)


def test_scale_steps():
  rng = np.random.default_rng(0)
  rule = GeometryRule(crop_size=(8, 8), scale_range=(0.5, 2.0), scale_step=0.1)
  values, counts = np.unique(np.round([draw_scale(rng, rule) for _ in range(8000)], 6), return_counts=True)
  np.testing.assert_allclose(values, np.arange(5, 21) / 10)
  assert counts.min() > 400 and counts.max() < 600


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"crop_size": (769,)}, r"crop_size is \(769,\); expected \(height, width\)"),
    ({"crop_size": (0, 5)}, "both at least 1"),
    ({"scale_range": (2.0, 0.5)}, "0 < low <= high"),
    ({"scale_step": -0.1}, "scale_step is -0.1"),
    ({"flip": 1.5}, "flip is 1.5; expected a probability"),
  ],
)
def test_rules_that_do_not_fit(change, sentence):
  good = dict(crop_size=(8, 8), scale_range=(0.5, 2.0), scale_step=0.0, flip=0.5)
  with pytest.raises(DataError, match=sentence):
    make_rule(**(good | change))
