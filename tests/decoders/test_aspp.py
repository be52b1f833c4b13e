"""Pyramids of v2 and v3: exact counts of the published heads, sums, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.decoders.aspp import DeepLabV3, SummedASPP
from tests.encoders.checks import count, image


def _count(head, channels=2048):
  features = {"stage4": jax.ShapeDtypeStruct((1, 9, 9, channels), jnp.float32)}
  init = functools.partial(head.init, train=False)
  return count(jax.eval_shape(init, jax.random.key(0), features)["params"])


@pytest.mark.parametrize(
  "head, channels, expected",
  [
    (SummedASPP(num_classes=21), 2048, 1_548_372),
    (DeepLabV3(num_classes=21), 2048, 15_540_501),
    (DeepLabV3(num_classes=21, extra_conv=True), 2048, 15_540_501 + 590_336),  # torchvision
    (DeepLabV3(num_classes=22), 2048, 15_540_501 + 257),
    (DeepLabV3(num_classes=21, rates=()), 320, 301_845),  # MobileNetV2
  ],
)
def test_parameters_of_the_heads(head, channels, expected):
  assert _count(head, channels) == expected


@pytest.mark.parametrize(
  "name, fields, expected",
  [
    ("deeplabv3_resnet50", dict(decoder=dict(extra_conv=True)), 39_638_869),
    (
      "deeplabv3_resnet50",
      dict(decoder=dict(extra_conv=True), aux_decoder=dict(stage="stage3")),
      42_004_074,
    ),
  ],
)
def test_parameters_of_the_systems(name, fields, expected):
  model = jaxseg.create_model(name, num_classes=21, **fields)
  picture = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  assert count(jax.eval_shape(init, jax.random.key(0), picture)["params"]) == expected


def test_summed_branches():
  x = {"stage1": image(7, 8)}
  head = SummedASPP(num_classes=4, rates=(1, 3))
  variables = head.init(jax.random.key(0), x, train=False)
  one = [
    head.clone(rates=(rate,)).apply(
      {"params": {"classifier0": variables["params"][f"classifier{i}"]}}, x, train=False
    )
    for i, rate in enumerate((1, 3))
  ]
  np.testing.assert_allclose(head.apply(variables, x, train=False), one[0] + one[1], atol=1e-6)
  bare = head.clone(num_classes=None)
  np.testing.assert_array_equal(bare.apply({}, x, train=False), x["stage1"])


@pytest.mark.parametrize("dropout", ["channels", "elements"])
def test_dropout(dropout):
  """Whole channels or single elements; what survives is scaled, and evaluation drops nothing."""
  x = {"stage1": image(6, 7, batch=2)}
  head = DeepLabV3(channels=8, rates=(2,), dropout=dropout, dropout_rate=0.5)
  variables = head.init(jax.random.key(0), x, train=False)
  rngs = {"dropout": jax.random.key(1)}
  full, _ = head.clone(dropout_rate=0.0).apply(variables, x, train=True, mutable=["batch_stats"])
  dropped, _ = head.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
  alive = np.asarray(full) > 0
  ratio = np.where(alive, dropped / np.where(alive, full, 1), np.nan)
  assert set(np.unique(ratio[alive].round(4))) == {0.0, 2.0}
  constant = [
    len(np.unique(c[~np.isnan(c)].round(4))) <= 1 for image in ratio for c in image.reshape(-1, 8).T
  ]
  assert all(constant) == (dropout == "channels")


def test_the_stage_can_be_chosen():
  x = {"stage1": image(8, 8), "stage2": image(4, 4)}
  head = DeepLabV3(channels=4, rates=(), stage="stage1")
  assert head.init_with_output(jax.random.key(0), x, train=False)[0].shape == (1, 8, 8, 4)
