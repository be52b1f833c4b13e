"""Losses of pixels with several classes or none: each class is a question of its own."""

import jax
import numpy as np
import pytest
import torch

from jaxseg.classes import as_label, class_bits, members
from jaxseg.errors import UserError
from jaxseg.losses import LOSSES, binary_cross_entropy
from jaxseg.train import make_loss


def example(classes=3):
  rng = np.random.default_rng(0)
  logits = 3 * rng.standard_normal((2, 5, 6, classes)).astype(np.float32)
  chosen = rng.random(logits.shape) < 0.4
  labels = as_label(chosen).astype(np.int32)
  labels[rng.random(labels.shape) < 0.3] = 255
  return logits, labels, chosen.astype(np.float32)


def test_labels_hold_a_bit_for_each_class_and_never_say_ignore():
  assert class_bits(9).tolist() == [1, 2, 4, 8, 16, 32, 64, 256, 512]
  every = np.eye(9, dtype=bool)
  np.testing.assert_array_equal(members(as_label(every), 9), every)
  assert as_label(np.ones((1, 7), bool)).dtype == np.uint8 and as_label(np.ones((1, 15), bool)) == 65407
  codes = as_label(np.array(np.meshgrid(*[[False, True]] * 9)).reshape(9, -1).T)
  assert 255 not in codes and len(set(codes.tolist())) == 512


@pytest.mark.parametrize("classes", [1, 3])
def test_binary_cross_entropy_equals_torch(classes):
  logits, labels, chosen = example(classes)
  x = torch.tensor(logits, requires_grad=True)
  each = torch.nn.functional.binary_cross_entropy_with_logits(x, torch.tensor(chosen), reduction="none")
  expected = each[torch.tensor(labels != 255)].mean()
  expected.backward()
  loss, grad = jax.value_and_grad(lambda x: binary_cross_entropy(x, labels, multi_label=True))(logits)
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
  np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_dice_and_focal_against_their_formulas():
  logits, labels, chosen = example()
  p, valid = 1 / (1 + np.exp(-np.float64(logits))), (labels != 255)[..., None]
  sums = [(x * valid).sum((1, 2)) for x in (p * chosen, p**2, chosen)]
  dice = np.mean(1 - (2 * sums[0] + 1) / (sums[1] + sums[2] + 1))
  np.testing.assert_allclose(LOSSES["dice"](logits, labels, multi_label=True), dice, rtol=1e-5)
  right = np.where(chosen > 0, p, 1 - p)
  focal = (-((1 - right) ** 2) * np.log(right) / 2 * valid).sum() / (valid.sum() * 3)
  np.testing.assert_allclose(LOSSES["focal"](logits, labels, multi_label=True), focal, rtol=1e-5)


def test_strange_labels_and_losses_of_one_class_a_pixel():
  logits, labels, _ = example()
  for name in ("binary_cross_entropy", "dice", "focal"):
    assert np.isnan(LOSSES[name](logits, np.where(labels == 0, 8, labels), multi_label=True)), name
  loss = make_loss({"name": "binary_cross_entropy+dice"}, multi_label=True)
  assert np.isfinite(loss({"logits": logits}, labels)[0])
  with pytest.raises(
    UserError, match=r"loss.name lovasz gives each pixel exactly one class; with data.multi_"
  ):
    make_loss({"name": "lovasz"}, multi_label=True)
