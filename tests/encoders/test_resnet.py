"""ResNet: exact counts, stems, the conventions of dilation. Its numbers are tested in tests/pretrained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxseg
from jaxseg.encoders.resnet import STEMS, ResNet, Unit, stem_pool
from tests.encoders.checks import image, perturbed

TINY = dict(stage_sizes=(1, 1, 2, 2), width=8)


def _shapes(model, size=65):
  picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  features, variables = jax.eval_shape(
    functools.partial(model.init_with_output, train=False), jax.random.key(0), picture
  )
  return {k: v.shape[1:] for k, v in features.items()}, variables


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_strides(stem, output_stride):
  """At a size of the form 32n + 1 every map is (size - 1) / stride + 1."""
  features, _ = _shapes(
    ResNet(stage_sizes=(2, 2, 2, 2), width=16, stem=stem, output_stride=output_stride), 129
  )
  strides = [min(s, output_stride) for s in (4, 8, 16, 32)]
  assert list(features.values()) == [(128 // s + 1, 128 // s + 1, 64 * 2**i) for i, s in enumerate(strides)]


@pytest.mark.parametrize("stem, contract", [("v1", False), ("v1b", True), ("v1c", True), ("beta", False)])
def test_dilation_computes_what_striding_computes(stem, contract):
  """Each convention's dilated network, sampled every fourth pixel, is the strided network."""
  strided = ResNet(**TINY, stem=stem, contract_dilation=contract)
  picture = image(65, 97)
  variables = jax.jit(functools.partial(strided.init, train=False))(jax.random.key(0), picture)
  variables = dict(variables) | {"params": perturbed(variables["params"], 0.02)}

  @functools.partial(jax.jit, static_argnums=0)
  def last(output_stride):
    model = strided.clone(output_stride=output_stride)
    return model.apply(variables, picture, train=False)["stage4"]

  full = last(32)
  for output_stride in (16, 8):
    step = 32 // output_stride
    np.testing.assert_allclose(
      last(output_stride)[:, ::step, ::step], full, atol=1e-4 * float(np.abs(full).max())
    )


def test_rates_by_convention():
  """Multi-grid of the paper and of mmsegmentation, and the first unit of a dilated stage."""
  rates = lambda **fields: [  # noqa: E731
    [u.rate for u in stage] for stage in ResNet(stage_sizes=(1, 2, 3, 3), **fields).units()
  ]
  assert rates(output_stride=16, multi_grid=(1, 2, 4)) == [[1], [1, 1], [1, 1, 1], [2, 4, 8]]
  assert rates(output_stride=8, multi_grid=(1, 2, 4)) == [[1], [1, 1], [2, 2, 2], [4, 8, 16]]
  taken = dict(output_stride=8, multi_grid=(1, 2, 4), multi_grid_times_rate=False)
  assert rates(**taken, contract_dilation=True) == [[1], [1, 1], [1, 2, 2], [1, 2, 4]]
  assert rates(output_stride=8, contract_dilation=True) == [[1], [1, 1], [1, 2, 2], [2, 4, 4]]
  assert rates(output_stride=8) == [[1], [1, 1], [2, 2, 2], [4, 4, 4]]
  assert rates(stem="beta", output_stride=8) == [[1], [1, 1], [2, 2, 2], [4, 4, 4]]
  assert rates(stem="beta", output_stride=16, multi_grid=(1, 2, 4))[-1] == [2, 4, 8]
  units = ResNet(stage_sizes=(2, 2, 2, 2), stem="beta", output_stride=16).units()
  assert [stage[-1].stride for stage in units] == [2, 2, 1, 1]
  assert ResNet(stage_sizes=(2, 2, 2, 2)).units()[1] == (Unit(2, 1), Unit(1, 1))


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", [(8, 9), (33, 32)])
def test_stem_pool_is_torchs(size, ceil):
  x = np.random.default_rng(0).standard_normal((1, *size, 2)).astype(np.float32) - 3
  theirs = torch.nn.functional.max_pool2d(
    torch.from_numpy(x).permute(0, 3, 1, 2), 3, 2, padding=1, ceil_mode=ceil
  )
  np.testing.assert_array_equal(stem_pool(x, ceil=ceil), theirs.permute(0, 2, 3, 1).numpy())


def test_frozen_norm_trains_with_stored_statistics():
  model = ResNet(stage_sizes=(1, 1, 1, 1), width=8, frozen_norm=True)
  picture = image(33, 33, batch=2)
  variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), picture)

  @jax.jit
  def run(variables):
    evaluated = model.apply(variables, picture, train=False)
    return evaluated, *model.apply(variables, picture, train=True, mutable=["batch_stats"])

  evaluated, trained, changed = run(variables)
  np.testing.assert_array_equal(trained["stage4"], evaluated["stage4"])
  jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
  "fields, sentence",
  [
    (dict(output_stride=4), "output_stride is 4, but resnet50 gives 8, 16 or 32"),
    (dict(stem="v1d"), "stem is 'v1d'; did you mean 'v1'\\? known: beta, v1, v1b, v1c"),
    (dict(multi_grid=(1, 2)), r"multi_grid=\(1, 2\) has 2 rates, but the last stage 3 units"),
    (dict(multi_grid=(1, 2, 4, 8)), "has 4 rates, but the last stage 3 units"),
  ],
)
def test_bad_fields(fields, sentence):
  with pytest.raises(ValueError, match=sentence):
    _shapes(jaxseg.create_model("resnet50", encoder=fields))
