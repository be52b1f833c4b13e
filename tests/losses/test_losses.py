"""Every loss of the catalog: what all promise, and each against its formula written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import losses
from jaxseg.losses import LOSSES, dice, focal, lovasz, ohem_cross_entropy

WEIGHTS = (1.0, 0.25, 3.0, 2.0, 0.5)
# Each loss with its defaults, and the settings that take another path.
CASES = [
  *[(name, {}) for name in LOSSES],
  ("ohem_cross_entropy", {"thresh": 0.0, "min_kept": 9, "normalize_by": "kept"}),
  ("dice", {"per_class": False, "exponent": 1.0, "smooth": 1e-3}),
  ("focal", {"activation": "softmax", "gamma": 0.5, "normalize_by": "weights"}),
  ("lovasz", {"classes": "all", "per_image": True}),
]
each = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)


def example(seed=0, ignored=0.3):
  rng = np.random.default_rng(seed)
  logits = 3 * rng.standard_normal((2, 6, 7, 5)).astype(np.float32)
  labels = rng.integers(0, 5, (2, 6, 7)).astype(np.int32)
  labels[rng.random(labels.shape) < ignored] = 255
  labels[0][labels[0] == 3] = 255  # a class that one image lacks
  return logits, labels


def softmax(logits):
  e = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@each
def test_zero_with_zero_gradient_when_nothing_is_labelled(name, settings):
  logits, labels = example()
  function = jax.jit(jax.value_and_grad(lambda x, y: LOSSES[name](x, y, **settings)))
  loss, grad = function(logits, np.full_like(labels, 255))
  assert loss == 0.0
  assert not np.any(grad)
  # And the same function where there are labels: the zero above is not a constant. Huge logits
  # at ignored pixels, and saturated ones at labelled ones, spoil nothing.
  logits = np.where((labels == 255)[..., None], 1e30, 1e3 * logits).astype(np.float32)
  loss, grad = function(logits, labels)
  assert np.isfinite(loss) and loss > 0
  assert np.all(np.isfinite(grad)) and not np.any(np.asarray(grad)[labels == 255])


@each
def test_ids_and_precision(name, settings):
  logits, labels = example()
  function = lambda x, y, ignore_label=255: LOSSES[name](x, y, ignore_label=ignore_label, **settings)  # noqa: E731
  loss = function(logits, labels)
  assert np.isfinite(loss)
  without = np.where(labels == 2, 255, labels)
  np.testing.assert_array_equal(
    function(logits, np.where(without == 255, 2, without), 2), function(logits, without)
  )
  low = jnp.asarray(logits, jnp.bfloat16)
  assert function(low, labels).dtype == jnp.float32
  np.testing.assert_array_equal(function(low, labels), function(low.astype(jnp.float32), labels))
  for wrong in (5, -1):
    labels[0, 0, 0] = wrong
    assert np.isnan(function(logits, labels)), "an id that is no class is not silently dropped"


@pytest.mark.parametrize(
  ("thresh", "min_kept"), [(0.7, 1), (0.05, 4), (0.3, 10_000), (0.0, 4), (0.0, 10_000)]
)
@pytest.mark.parametrize("normalize_by", ["all", "valid", "kept"])
def test_ohem_keeps_what_sorting_keeps(thresh, min_kept, normalize_by):
  logits, labels = example()
  valid = labels != 255
  p = np.take_along_axis(softmax(logits), np.where(valid, labels, 0)[..., None], -1)[..., 0]
  ranked = np.sort(p[valid])
  limit = max(ranked[min(2 * min_kept, len(ranked) - 1)], thresh)
  kept = valid & (p < limit)
  if not thresh:
    kept = valid & (p <= ranked[min(2 * min_kept, len(ranked)) - 1])
  if min_kept == 4:
    assert kept.sum() == max(8, (p[valid] < thresh).sum()), "a count an image, taken over the batch"
  divisor = {"all": labels.size, "valid": valid.sum(), "kept": kept.sum()}[normalize_by]
  loss = ohem_cross_entropy(logits, labels, thresh=thresh, min_kept=min_kept, normalize_by=normalize_by)
  np.testing.assert_allclose(loss, -np.log(p[kept]).sum() / divisor, rtol=2e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_dice_is_one_minus_the_overlap(weights):
  logits, labels = example()
  p, losses_of = softmax(logits), []
  for b in range(2):
    for k in range(5):
      valid = labels[b] != 255
      q, t = p[b, ..., k][valid], (labels[b] == k)[valid]
      losses_of.append((1 - (2 * q[t].sum() + 1) / ((q**2).sum() + t.sum() + 1)) * (weights or [1] * 5)[k])
  np.testing.assert_allclose(dice(logits, labels, class_weights=weights), np.mean(losses_of), rtol=2e-6)
  if weights is None:
    one_hot = np.eye(6)[np.where(labels == 255, 5, labels)][..., :5]
    p = np.where((labels == 255)[..., None], 0, p)
    both = p.sum((1, 2, 3)) + one_hot.sum((1, 2, 3))
    joint = 1 - (2 * (p * one_hot).sum((1, 2, 3)) + 1e-3) / (both + 1e-3)
    ours = dice(logits, labels, per_class=False, exponent=1.0, smooth=1e-3)
    np.testing.assert_allclose(ours, joint.mean(), rtol=2e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_is_weighted_cross_entropy(weights):
  logits, labels = example()
  valid = labels != 255
  w = np.asarray(weights or [1.0] * 5)
  x, t = np.float64(logits[valid]), labels[valid][:, None] == np.arange(5)
  right = 1 / (1 + np.exp(np.where(t, -x, x)))
  terms = np.where(t, 0.25, 0.75) * (1 - right) ** 1.5 * -np.log(right) * w
  for normalize_by, divisor in (("valid", terms.size), ("all", logits.size), ("weights", len(x) * w.sum())):
    loss = focal(logits, labels, class_weights=weights, gamma=1.5, alpha=0.25, normalize_by=normalize_by)
    np.testing.assert_allclose(loss, terms.sum() / divisor, rtol=5e-6)
  p = softmax(x)[t]
  terms = (1 - p) ** 2 * -np.log(p) * w[labels[valid]]
  loss = focal(logits, labels, class_weights=weights, activation="softmax")
  np.testing.assert_allclose(loss, terms.mean(), rtol=5e-6)


def lovasz_by_sets(p, labels, k):
  """The definition: errors falling, each times the growth of the Jaccard loss of the set so far."""
  errors, truth = np.abs((labels == k) - p[..., k]), labels == k
  total, wrong, before = 0.0, np.zeros(len(labels), bool), 0.0
  for i in np.argsort(-errors):
    wrong[i] = True
    jaccard = 1 - (truth & ~wrong).sum() / (truth | wrong).sum()
    total, before = total + errors[i] * (jaccard - before), jaccard
  return total


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_is_the_extension_of_the_jaccard_loss(per_image):
  logits, labels = example()
  images = [labels[0], labels[1]] if per_image else [labels]
  maps = [softmax(logits[0]), softmax(logits[1])] if per_image else [softmax(logits)]
  present, everything, weighted = [], [], []
  for p, y in zip(maps, images, strict=True):
    values = [lovasz_by_sets(p[y != 255], y[y != 255], k) for k in range(5)]
    there = [np.any(y == k) for k in range(5)]
    present.append(np.mean(np.extract(there, values)))
    weighted.append(np.mean(np.extract(there, np.multiply(values, WEIGHTS))))
    everything.append(np.mean(values))
  for settings, expected in (
    ({}, present),
    ({"class_weights": WEIGHTS}, weighted),
    ({"classes": "all"}, everything),
  ):
    ours = lovasz(logits, labels, per_image=per_image, **settings)
    np.testing.assert_allclose(ours, np.mean(expected), rtol=5e-6)


@pytest.mark.parametrize(
  ("name", "settings", "sentence"),
  [
    ("ohem_cross_entropy", {"thresh": 1.5}, r"thresh is 1.5, expected a probability in \[0, 1\]"),
    ("ohem_cross_entropy", {"min_kept": 0}, "min_kept is 0, expected at least 1 pixel an image"),
    (
      "ohem_cross_entropy",
      {"normalize_by": "mean"},
      "normalize_by is 'mean', expected 'valid', 'all', 'weights'",
    ),
    ("dice", {"smooth": 0.0}, "smooth is 0.0, expected above 0"),
    ("dice", {"exponent": 0.5}, "exponent is 0.5, expected at least 1"),
    ("dice", {"per_class": False, "class_weights": WEIGHTS}, "class weights need per_class=True"),
    ("focal", {"activation": "relu"}, "activation is 'relu', expected 'sigmoid' or 'softmax'"),
    ("focal", {"gamma": -1.0}, "gamma is -1.0, expected at least 0"),
    ("focal", {"alpha": 2.0}, r"alpha is 2.0, expected a share in \[0, 1\]"),
    ("focal", {"normalize_by": "kept"}, "normalize_by is 'kept', expected 'valid', 'all' or 'weights'"),
    ("lovasz", {"classes": "some"}, "classes is 'some', expected 'present' or 'all'"),
    ("lovasz", {"class_weights": (1.0, 2.0)}, "there are 2 class weights for 5 classes"),
  ],
)
def test_bad_settings(name, settings, sentence):
  # Under pytest, jaxtyping refuses a wrong literal before our own check can: call what it wraps.
  function = getattr(LOSSES[name], "__wrapped__", LOSSES[name])
  with pytest.raises(ValueError, match=sentence):
    function(*example(), **settings)


def test_names_are_the_functions():
  # Soft labels are no class ids, so that loss is none of the config's.
  assert sorted(LOSSES) == sorted(set(losses.__all__) - {"LOSSES", "soft_cross_entropy"})
