"""Random erasing, mixup and cutmix: by hand for given draws, and the draws by their rule."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxseg.data import mixing


def _draws(function, count, **settings):
  keys = jax.random.split(jax.random.key(0), count)
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(partial(function, **settings)))(keys))


def test_soft_labels():
  got = np.asarray(mixing.soft_labels(np.array([2, 0]), num_classes=4, smoothing=0.1))
  np.testing.assert_allclose(got, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6)


def test_mix_by_hand():
  image = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 5, 3), np.float32)
  target = np.eye(4, dtype=np.float32)
  box = np.array([1, 2, 3, 4], np.int32)
  draws = mixing.MixDraws(cutmix=np.array(False), keep=np.float32(0.75), box=box)
  mixed, soft = mixing.mix(image, target, draws)
  np.testing.assert_allclose(mixed[:, 0, 0, 0], [0.75, 1.25, 1.75, 2.25])
  np.testing.assert_allclose(soft[0], [0.75, 0, 0, 0.25])
  draws = draws._replace(cutmix=np.array(True), keep=np.float32(11 / 15))
  mixed, soft = mixing.mix(image, target, draws)
  assert mixed[0, ..., 0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 3, 3, 0], [0, 0, 3, 3, 0]]
  np.testing.assert_allclose(soft[1], [0, 11 / 15, 4 / 15, 0], rtol=1e-6)


def test_mix_draws_follow_the_rule():
  draws = _draws(mixing.draw_mix, 10_000, shape=(40, 60))
  assert draws.cutmix.mean() == pytest.approx(0.5, abs=0.02)
  # Beta(.8, .8): mean 1/2, variance 1 / (4 (2 · .8 + 1)).
  shared = draws.keep[~draws.cutmix]
  assert shared.mean() == pytest.approx(0.5, abs=0.015)
  assert shared.var() == pytest.approx(1 / 10.4, rel=0.05)
  top, left, bottom, right = draws.box.T
  assert (top >= 0).all() and (left >= 0).all() and (bottom <= 40).all() and (right <= 60).all()
  assert (bottom >= top).all() and (right >= left).all()
  area = ((bottom - top) * (right - left) / 2400)[draws.cutmix]
  np.testing.assert_allclose(draws.keep[draws.cutmix], 1 - area, rtol=1e-5)
  # Boxes that the border does not cut: sides in proportion, 1 - keep of Beta(1, 1), uniform.
  whole = (top > 0) & (left > 0) & (bottom < 40) & (right < 60)
  assert np.abs((right - left)[whole] * 40 / 60 - (bottom - top)[whole]).max() < 2
  # The centre is uniform and the area uniform: a quarter of cutmix's expected area, by integration
  # over one side, s = sqrt(u): E[min(c, s/2) + min(1 - c, s/2)] = s - s²/4.
  u = (np.arange(100_000) + 0.5) / 100_000
  side = np.sqrt(u) - u / 4
  assert area.mean() == pytest.approx(np.mean(side**2), abs=0.012)


def test_one_method_alone():
  assert not _draws(mixing.draw_mix, 50, shape=(8, 8), mixup_alpha=1.0, cutmix_alpha=0.0).cutmix.any()
  assert _draws(mixing.draw_mix, 50, shape=(8, 8), mixup_alpha=0.0).cutmix.all()
  with pytest.raises(ValueError, match="mixup_alpha is -1"):
    mixing.draw_mix(jax.random.key(0), (8, 8), mixup_alpha=-1.0)


def test_erasing_follows_the_rule():
  box = np.asarray(mixing.draw_erasing(jax.random.key(0), 10_000, (100, 120)))
  top, left, bottom, right = box.T
  on = bottom > 0
  assert on.mean() == pytest.approx(0.25, abs=0.015)
  assert not box[~on].any()
  height, width = (bottom - top)[on], (right - left)[on]
  assert (top >= 0).all() and (left >= 0).all() and (bottom <= 100).all() and (right <= 120).all()
  share = height * width / 12_000
  assert 0.018 < share.min() < 0.03 and 0.3 < share.max() < 0.35
  # Those that always fit have a uniform area and a log-uniform aspect.
  small = share < 0.2
  counts = np.histogram(share[small], bins=3, range=(0.02, 0.2))[0]
  assert np.abs(counts / counts.mean() - 1).max() < 0.15
  ratio = np.log((height / width)[small])
  assert abs(ratio.mean()) < 0.08 and ratio.std() == pytest.approx(
    2 * np.log(1 / 0.3) / np.sqrt(12), rel=0.07
  )


def test_erase_and_the_whole_recipe():
  image = np.full((2, 20, 30, 3), 7.0, np.float32)
  box = np.array([[2, 3, 10, 25], [0, 0, 0, 0]], np.int32)
  out = np.array(mixing.erase(image, box, jax.random.key(0)))
  assert (out[1] == 7).all()
  inside = out[0, 2:10, 3:25]
  assert abs(inside.mean()) < 0.2 and inside.std() == pytest.approx(1, abs=0.1)
  out[0, 2:10, 3:25] = 7
  assert (out == 7).all()
  # Alphas of 1, as their draws compile in no time.
  augment = jax.jit(partial(mixing.augment, num_classes=5, mixup_alpha=1.0))
  images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
  images, targets = augment(images, np.arange(4), jax.random.key(1))
  assert images.shape == (4, 16, 16, 3) and np.isfinite(images).all()
  np.testing.assert_allclose(np.sum(targets, axis=1), 1, rtol=1e-5)
