"""Heads of DeepLab v1 and v2 on VGG16: counts, branches, side branches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.decoders.large_fov import LargeFOV
from tests.encoders.checks import image


def _system(name, size=(65, 65), **fields):
  model = jaxseg.create_model(name, num_classes=21, **fields)
  picture = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), picture)


@pytest.mark.parametrize("size", [(32, 32), (45, 71)])
@pytest.mark.parametrize("ceil_pool", [False, True])
def test_side_branches_meet_the_main_map_at_any_size(size, ceil_pool):
  out, _ = _system("deeplabv1_msc_vgg16", size, encoder=dict(ceil_pool=ceil_pool))
  expected = size
  for _ in range(3):
    expected = tuple(n // 2 + 1 if ceil_pool else -(-n // 2) for n in expected)
  assert out["logits"].shape[1:3] == expected


def test_branches_are_summed_and_named():
  """The four-branch head is the sum of four heads of one branch."""
  x = {"stage1": image(9, 11)}
  rates = (2, 4, 8, 12)
  whole = LargeFOV(num_classes=5, rates=rates, width=6)
  variables = whole.init(jax.random.key(0), x, train=False)
  params = variables["params"]
  assert set(params) == {f"{n}{i}" for n in ("fc6", "fc7", "classifier") for i in range(4)}
  total = 0
  for i, rate in enumerate(rates):
    one = {n: params[f"{n}{i}"] for n in ("fc6", "fc7", "classifier")}
    total += whole.clone(rates=(rate,)).apply({"params": one}, x, train=False)
  np.testing.assert_allclose(whole.apply(variables, x, train=False), total, atol=1e-5)


def test_every_side_branch_counts():
  x = {"stage0": image(16, 18), "stage1": image(8, 9), "stage2": image(4, 5)}
  head = LargeFOV(num_classes=3, width=6, side_stages=("stage0", "stage1"), side_width=4)
  variables = head.init(jax.random.key(0), x, train=False)
  assert variables["params"]["classifier"]["kernel"].shape == (1, 1, 6 + 2 * 4, 3)

  def total(features):
    weights = np.random.default_rng(0).standard_normal((1, 4, 5, 3))
    return (head.apply(variables, features, train=False) * weights).sum()

  assert all(np.any(gradient) for gradient in jax.grad(total)(x).values())


def test_sentences():
  with pytest.raises(ValueError, match=r"reads 'stage0'.*with_image=True"):
    _system("deeplabv1_msc_vgg16", encoder=dict(with_image=False))
  with pytest.raises(ValueError, match=r"side_stages=.* go with one branch, but rates=\(6, 12\)"):
    _system("deeplabv1_msc_vgg16", decoder=dict(rates=(6, 12)))
