"""Cross entropy against hand-worked numbers and PyTorch's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxseg.losses import cross_entropy as eager

# One compilation instead of one for every operation.
cross_entropy = jax.jit(
  eager, static_argnames=("class_weights", "normalize_by", "label_smoothing", "ignore_label")
)
WEIGHTS = (1.0, 0.25, 3.0, 2.0, 0.5)


def example(seed=0, ignored=0.3):
  rng = np.random.default_rng(seed)
  logits = 3 * rng.standard_normal((2, 6, 7, 5)).astype(np.float32)
  labels = rng.integers(0, 5, (2, 6, 7)).astype(np.int32)
  labels[rng.random(labels.shape) < ignored] = 255
  return logits, labels


def torch_loss(logits, labels, *, weights, smoothing, normalize_by):
  """PyTorch's own mean for "valid" and "weights"; its sum over every pixel for "all"."""
  x = torch.tensor(logits.transpose(0, 3, 1, 2).copy(), requires_grad=True)
  y = torch.tensor(labels).long()
  w = None if weights is None else torch.tensor(weights)
  total = torch.nn.functional.cross_entropy(
    x, y, weight=w, ignore_index=255, label_smoothing=smoothing, reduction="sum"
  )
  if normalize_by == "weights":
    loss = torch.nn.functional.cross_entropy(x, y, weight=w, ignore_index=255, label_smoothing=smoothing)
  else:
    loss = total / (y.numel() if normalize_by == "all" else (y != 255).sum())
  loss.backward()
  return loss.item(), x.grad.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("normalize_by", ["valid", "all", "weights"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient_equal_torch(normalize_by, weights, smoothing):
  logits, labels = example()
  fields = dict(class_weights=weights, normalize_by=normalize_by, label_smoothing=smoothing)
  loss, grad = jax.jit(jax.value_and_grad(partial(cross_entropy, **fields)))(logits, labels)
  expected, expected_grad = torch_loss(
    logits, labels, weights=weights, smoothing=smoothing, normalize_by=normalize_by
  )
  np.testing.assert_allclose(loss, expected, rtol=2e-6)
  np.testing.assert_allclose(grad, expected_grad, atol=1e-8, rtol=1e-5)


def test_by_hand():
  # Softmax of (ln 3, 0) is (3/4, 1/4); the second pixel is right with 1/4, the third has no label.
  logits = np.log(np.array([[3.0, 1.0], [3.0, 1.0], [9.0, 1.0]], np.float32))
  labels = np.array([0, 1, 255])
  first, second = np.log(4 / 3), np.log(4)
  np.testing.assert_allclose(cross_entropy(logits, labels), (first + second) / 2, rtol=1e-6)
  np.testing.assert_allclose(
    cross_entropy(logits, labels, normalize_by="all"), (first + second) / 3, rtol=1e-6
  )
  weighted = cross_entropy(logits, labels, class_weights=(1.0, 3.0), normalize_by="weights")
  np.testing.assert_allclose(weighted, (first + 3 * second) / 4, rtol=1e-6)


@pytest.mark.parametrize("normalize_by", ["valid", "all", "weights"])
def test_zero_when_nothing_is_labelled(normalize_by):
  logits, labels = example()
  fields = dict(class_weights=WEIGHTS, normalize_by=normalize_by, label_smoothing=0.1)
  gradient = jax.jit(jax.value_and_grad(partial(cross_entropy, **fields)))
  loss, grad = gradient(logits, np.full_like(labels, 255))
  assert loss == 0.0
  assert not np.any(grad)


def test_no_gradient_at_ignored_pixels_even_when_their_logits_are_huge():
  logits, labels = example()
  logits[labels == 255] = 1e30
  grad = jax.jit(jax.grad(cross_entropy))(logits, labels)
  assert not np.any(np.asarray(grad)[labels == 255])
  assert np.all(np.isfinite(grad))


def test_ignore_label_may_be_a_number_below_the_class_count():
  logits, labels = example(ignored=0.0)
  moved = np.where(labels == 2, 255, labels)
  np.testing.assert_array_equal(cross_entropy(logits, labels, ignore_label=2), cross_entropy(logits, moved))


def test_an_id_that_is_no_class_is_not_silently_dropped():
  logits, labels = example()
  for wrong in (5, 254, -1):
    labels[0, 0, 0] = wrong
    assert np.isnan(cross_entropy(logits, labels))


def test_float32_for_bfloat16_logits():
  logits, labels = example()
  low = jnp.asarray(logits, jnp.bfloat16)
  loss = cross_entropy(low, labels)
  assert loss.dtype == jnp.float32
  np.testing.assert_array_equal(loss, cross_entropy(low.astype(jnp.float32), labels))


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ({"normalize_by": "mean"}, "normalize_by is 'mean', expected 'valid', 'all' or 'weights'"),
    ({"class_weights": (1.0, 2.0)}, "there are 2 class weights for 5 classes"),
    ({"label_smoothing": 1.5}, r"label_smoothing is 1.5, expected a share in \[0, 1\)"),
  ],
)
def test_bad_arguments(arguments, sentence):
  # Under pytest, jaxtyping refuses a wrong literal before our own check can: call what it wraps.
  function = getattr(eager, "__wrapped__", eager)
  with pytest.raises(ValueError, match=sentence):
    function(*example(), **arguments)
