"""Photometric distortion: OpenCV's 8-bit arithmetic and the rule's draws; test_draws.py has mmseg's."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.data import color

apply = jax.jit(color.apply)


def test_hsv_is_opencvs():
  """To the bit: one grey level would be up to nine after a change of hue."""
  rgb = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)
  hsv = np.stack(jax.jit(color.rgb_to_hsv)(jnp.asarray(rgb, jnp.float32)), axis=-1)[0]
  np.testing.assert_array_equal(hsv, cv2.cvtColor(rgb[0], cv2.COLOR_RGB2HSV))
  # Every hue with every saturation, at a sixteenth of the values.
  value = np.arange(3, 256, 16)
  hsv = np.stack(np.meshgrid(np.arange(180), np.arange(256), value, indexing="ij"), axis=-1)
  hsv = hsv.astype(np.uint8).reshape(180, 256 * len(value), 3)
  back = jax.jit(color.hsv_to_rgb)(*(hsv[..., i].astype(np.float32) for i in range(3)))
  np.testing.assert_array_equal(back, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _one(**changes) -> color.ColorDraws:
  values = dict(
    apply_brightness=False, brightness=0.0, apply_contrast=False, contrast=1.0, contrast_first=False,
    apply_saturation=False, saturation=1.0, apply_hue=False, hue=0,
  )  # fmt: skip
  kinds = {bool: np.bool_, float: np.float32, int: np.int32}
  return color.ColorDraws(**{k: np.array([v], kinds[type(v)]) for k, v in (values | changes).items()})


def test_steps_by_hand():
  image = np.array([[[[10, 100, 250]]]], np.uint8)
  assert apply(image, _one()).tolist() == image.tolist()
  assert apply(image, _one(apply_brightness=True, brightness=10.6)).tolist() == [[[[20, 110, 255]]]]
  assert apply(image, _one(apply_brightness=True, brightness=-10.6)).tolist() == [[[[0, 89, 239]]]]
  assert apply(image, _one(apply_contrast=True, contrast=1.25)).tolist() == [[[[12, 125, 255]]]]
  # A third of a turn: red becomes green, green blue, and blue red.
  for before, after in (([255, 0, 0], [0, 255, 0]), ([0, 255, 0], [0, 0, 255]), ([0, 0, 255], [255, 0, 0])):
    turned = apply(np.array([[[before]]], np.uint8), _one(apply_hue=True, hue=60))
    assert turned.tolist() == [[[after]]]
  # Saturation 0 leaves the value, the largest channel.
  assert apply(image, _one(apply_saturation=True, saturation=0.0)).tolist() == [[[[250, 250, 250]]]]
  # The two places of contrast differ where a step between them clips.
  pair = dict(apply_contrast=True, contrast=0.5, apply_saturation=True, saturation=1.5)
  dark = np.array([[[[11, 7, 9]]]], np.uint8)
  first, last = (apply(dark, _one(**pair, contrast_first=b)).tolist() for b in (True, False))
  assert first != last


def test_draws_follow_the_rule():
  draws = jax.tree.map(np.asarray, color.draw(jax.random.key(0), 10_000))
  for field in ("apply_brightness", "apply_contrast", "contrast_first", "apply_saturation", "apply_hue"):
    assert getattr(draws, field).mean() == pytest.approx(0.5, abs=0.02), field
  for field, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)):
    values = getattr(draws, field)
    width = high - low
    assert low <= values.min() < low + width / 100 and high - width / 100 < values.max() <= high, field
    assert values.mean() == pytest.approx((low + high) / 2, abs=width * 0.012), field
  assert np.unique(draws.hue).tolist() == list(range(-18, 18))
  # Coins and values are independent of each other.
  flat = np.stack([np.asarray(field, float) for field in draws])
  assert np.abs(np.corrcoef(flat) - np.eye(9)).max() < 0.05


def test_distort_under_jit():
  image = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), np.uint8)
  distort, key = jax.jit(color.distort), jax.random.key(3)
  got = distort(image, key)
  assert got.dtype == jnp.uint8 and got.shape == image.shape
  np.testing.assert_array_equal(got, apply(image, color.draw(key, 4)))
  np.testing.assert_array_equal(distort(image.astype(np.float32), key), got)
  # Each image of a batch is distorted in its own way, and each key differently.
  same = np.repeat(image[:1], 4, axis=0)
  rows = {row.tobytes() for k in range(4) for row in np.asarray(distort(same, jax.random.key(k)))}
  assert len(rows) > 12
