"""Geometry: equal to resize → crop → flip → pad, and drawn by the rule; test_draws.py has mmseg's."""

import cv2
import numpy as np
import pytest

from jaxseg.data import DataError, transforms
from jaxseg.data.transforms import (
  Geometry,
  GeometryRule,
  apply_geometry,
  crop_label,
  draw_geometry,
  draw_scale,
  filled_box,
  fit_size,
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


@pytest.mark.parametrize("whole", [True, False])
def test_equals_resize_then_crop(monkeypatch, whole):
  if not whole:  # as if every picture were too large to be resized as a whole
    monkeypatch.setattr(transforms, "_WHOLE_PIXELS", 0)
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
    assert np.abs(got[0].astype(int) - want[0]).max() <= (0 if whole else 1)
    cut += geometry.size[0] > 65 or geometry.size[1] > 96
    padded += geometry.size[0] < 65 or geometry.size[1] < 96
  assert min(cut, padded) > 10


def test_scale_one_copies_pixels():
  rng = np.random.default_rng(1)
  image, label = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.integers(0, 9, (40, 50), np.uint8)
  got = apply_geometry(image, label, Geometry((40, 50), top=3, left=7, flip=True), crop_size=(20, 30))
  np.testing.assert_array_equal(got[0], image[3:23, 7:37][:, ::-1])
  np.testing.assert_array_equal(got[1], label[3:23, 7:37][:, ::-1])


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
  ("low", "high", "step", "want"),
  [
    (0.5, 2.0, 0.25, [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]),  # TF DeepLab
    (0.5, 1.5, 0.25, [0.5, 0.75, 1, 1.25, 1.5]),  # DeepLab v2 in PyTorch
    (1.0, 1.0, 0.25, [1]),
  ],
)
def test_published_scale_steps(low, high, step, want):
  rng = np.random.default_rng(0)
  rule = GeometryRule(crop_size=(8, 8), scale_range=(low, high), scale_step=step)
  assert sorted({draw_scale(rng, rule) for _ in range(300)}) == want


def test_fit_size():
  # By hand: 2048 / 683 = 2.9985, 512 / 512 = 1; 1333 / 640 and 800 / 427 (the smaller); a portrait.
  assert fit_size((512, 683), (2048, 512)) == (512, 683)
  assert fit_size((427, 640), (1333, 800)) == (800, 1199)
  assert fit_size((640, 427), (1333, 800)) == fit_size((640, 427), (800, 1333)) == (1199, 800)
  assert fit_size((1024, 2048), (2048, 1024)) == (1024, 2048)
  assert fit_size((3, 1000), (100, 100)) == (1, 100)  # never 0


def test_keep_ratio_draws():
  """10,000 draws of Resize((2048, 512)) × U(0.5, 2): sizes by the rule, the scale uniform."""
  rng, shape = np.random.default_rng(0), (375, 500)
  rule = GeometryRule(crop_size=(512, 512), scale_range=(0.5, 2.0), resize=(2048, 512))
  draws = [draw_geometry(rng, shape, rule) for _ in range(10_000)]
  heights, widths = np.array([d.size for d in draws]).T
  # 375 is the short side, and it becomes int(512 × ratio) whole pixels; 500 keeps the aspect.
  np.testing.assert_array_equal(widths, (500 * (heights / 375) + 0.5).astype(int))
  assert (heights.min(), heights.max()) == (256, 1023)
  # Kolmogorov-Smirnov: 1.95 is the 0.1 % point.
  steps = np.arange(256, 1024)
  share = np.searchsorted(np.sort(heights), steps, side="right") / len(draws)
  assert np.abs(share - ((steps + 1) / 512 - 0.5) / 1.5).max() * 100 < 1.95
  # Both offsets are uniform over what fits, independently.
  for side, offset in ((heights, [d.top for d in draws]), (widths, [d.left for d in draws])):
    free = np.maximum(side - 512, 0)
    assert all(o == 0 for o, f in zip(offset, free, strict=True) if f == 0)
    place = np.array([o / f for o, f in zip(offset, free, strict=True) if f >= 100])
    assert np.abs(np.histogram(place, bins=5, range=(0, 1))[0] / len(place) - 0.2).max() < 0.025


def test_class_ratio_retries():
  """3,000 crops: mixed ones all equally often, others as often as 11 misses in a row."""
  label = np.zeros((12, 60), np.uint8)
  label[:, 40:] = 1
  label[:2] = 255  # does not count
  rule = GeometryRule(crop_size=(10, 10), flip=0.0, cat_max_ratio=0.75)
  rng = np.random.default_rng(0)
  lefts = np.array([draw_geometry(rng, label.shape, rule, label=label).left for _ in range(3_000)])
  # Of columns left..left+9, those from 40 on are class 1; 3 to 7 of 10 keep both below 75 %.
  mixed = np.arange(33, 38)
  miss = 1 - len(mixed) / 51
  want_missed = miss**11
  missed = ~np.isin(lefts, mixed)
  assert missed.mean() == pytest.approx(
    want_missed, abs=3.3 * np.sqrt(want_missed * (1 - want_missed) / 3_000)
  )
  counts = np.array([(lefts == left).sum() for left in mixed])
  expected = (~missed).sum() / len(mixed)
  assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees, 0.1 %
  # A picture with one class has no such crop: the last one is kept.
  flat = np.where(label == 1, 0, label).astype(np.uint8)
  lefts = [draw_geometry(rng, flat.shape, rule, label=flat).left for _ in range(500)]
  assert (min(lefts), max(lefts)) == (0, 50)


def test_class_ratio_is_that_of_the_resized_label():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, (31, 47), np.uint8)
  label[rng.random(label.shape) < 0.3] = 255
  for size in ((64, 90), (20, 31), (31, 47), (140, 55)):
    whole = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    for _ in range(20):
      top, left = (int(rng.integers(max(side - 16, 0) + 1)) for side in size)
      got = crop_label(label, Geometry(size, top=top, left=left), crop_size=(16, 16))
      want = whole[top : top + 16, left : left + 16]
      np.testing.assert_array_equal(got, want)
      counts = transforms._class_counts(label, size, (top, left), (16, 16))
      np.testing.assert_array_equal(counts, np.bincount(want[want < 255], minlength=255))


def test_padding_before_the_flip():
  rng = np.random.default_rng(0)
  image, label = rng.integers(0, 256, (6, 5, 3), np.uint8), rng.integers(0, 9, (6, 5), np.uint8)
  geometry = Geometry((6, 5), flip=True)
  after = apply_geometry(image, label, geometry, crop_size=(8, 9))
  before = apply_geometry(image, label, geometry, crop_size=(8, 9), pad="before_flip")
  plain = apply_geometry(image, label, Geometry((6, 5)), crop_size=(8, 9))
  for got, whole in zip(before, plain, strict=True):
    np.testing.assert_array_equal(got, whole[:, ::-1])
  assert filled_box(geometry, crop_size=(8, 9)) == (0, 0, 6, 5)
  assert filled_box(geometry, crop_size=(8, 9), pad="before_flip") == (0, 4, 6, 9)
  np.testing.assert_array_equal(after[0][:6, :5], before[0][:6, 4:])


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"crop_size": (769,)}, r"crop_size is \(769,\); expected \(height, width\)"),
    ({"crop_size": (0, 5)}, "both at least 1"),
    ({"scale_range": (2.0, 0.5)}, "0 < low <= high"),
    ({"scale_step": -0.1}, "scale_step is -0.1"),
    ({"flip": 1.5}, "flip is 1.5; expected a probability"),
    ({"resize": (512,)}, r"resize is \(512,\); expected \(long, short\)"),
    ({"resize": (2048, 0)}, r"resize is \(2048, 0\)"),
    ({"cat_max_ratio": 0.0}, "cat_max_ratio is 0.0; expected the largest share"),
    ({"cat_max_ratio": 75.0}, "cat_max_ratio is 75.0"),
    ({"pad": "left"}, "pad is 'left'; expected one of 'after_flip', 'before_flip'"),
  ],
)
def test_rules_that_do_not_fit(change, sentence):
  good = dict(crop_size=(8, 8), scale_range=(0.5, 2.0), scale_step=0.0, flip=0.5)
  with pytest.raises(DataError, match=sentence):
    make_rule(**(good | change))


def test_training_may_resample_only_what_the_crop_shows():
  rng = np.random.default_rng(3)
  image = cv2.resize(rng.integers(0, 256, (40, 60, 3)).astype(np.uint8), (300, 200))
  label = rng.integers(0, 5, (200, 300)).astype(np.uint8)
  differs = 0
  for _ in range(40):
    size = tuple(int(side) for side in rng.integers(60, 600, 2))
    top, left = (int(rng.integers(max(side - 64, 0) + 1)) for side in size)
    geometry = Geometry(size, top=top, left=left, flip=bool(rng.integers(2)))
    expected, ids = apply_geometry(image, label, geometry, crop_size=(64, 64))
    fast, fast_ids = apply_geometry(image, label, geometry, crop_size=(64, 64), exact=False)
    np.testing.assert_array_equal(fast_ids, ids)
    assert np.abs(fast.astype(int) - expected).max() <= 1
    differs += not np.array_equal(fast, expected)
    if size[0] * size[1] <= 64 * 64:
      np.testing.assert_array_equal(fast, expected)
  assert differs > 5, "the other way is taken"
