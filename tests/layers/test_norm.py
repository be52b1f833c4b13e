"""BatchNorm, LayerNorm, GroupNorm and PReLU against PyTorch, running statistics included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxseg.layers.activation import PReLUSlope
from jaxseg.layers.norm import BatchNorm, GroupNorm, LayerNorm
from jaxseg.ops.definition import traced_for
from tests import filled


def image(seed: int = 0, c: int = 64) -> np.ndarray:
  return (5 + 3 * np.random.default_rng(seed).standard_normal((2, 3, 5, c))).astype(np.float32)


def nchw(x) -> torch.Tensor:
  return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def nhwc(x: torch.Tensor) -> np.ndarray:
  return x.detach().numpy().transpose(0, 2, 3, 1)


def test_batch_norm_trains_and_evaluates_as_torch():
  """Three steps: outputs, and the running variance, which PyTorch keeps unbiased."""
  ours, theirs = BatchNorm(1e-3), torch.nn.BatchNorm2d(64, eps=1e-3)
  variables = ours.init(jax.random.key(0), image(), train=False)
  for seed in range(3):
    y, changed = ours.apply(variables, image(seed), train=True, mutable=["batch_stats"])
    variables = {**variables, **changed}
    np.testing.assert_allclose(y, nhwc(theirs(nchw(image(seed)))), atol=2e-5)
  stats = variables["batch_stats"]
  np.testing.assert_allclose(stats["mean"], theirs.running_mean.numpy(), rtol=1e-5)
  np.testing.assert_allclose(stats["var"], theirs.running_var.numpy(), rtol=1e-5)
  theirs.eval()
  y = ours.apply(variables, image(9), train=False)
  np.testing.assert_allclose(y, nhwc(theirs(nchw(image(9)))), atol=2e-5)


def test_initialising_in_training_mode_leaves_the_statistics():
  variables = BatchNorm().init(jax.random.key(0), image(), train=True)
  assert not np.any(variables["batch_stats"]["mean"])
  assert np.all(variables["batch_stats"]["var"] == 1)


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
  x = jnp.asarray(image(), jnp.bfloat16)
  y, variables = BatchNorm(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x, train=True)
  assert y.dtype == jnp.bfloat16
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_layer_and_group_norm_epsilon():
  """On data whose variance is near the epsilon, only 1e-5 gives PyTorch's values."""
  x = 1e-3 * image(c=64)
  layer = LayerNorm()
  y = layer.apply(layer.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(y, torch.nn.LayerNorm(64)(torch.from_numpy(x)).detach().numpy(), atol=1e-4)
  group = GroupNorm()
  y = group.apply(group.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(y, nhwc(torch.nn.GroupNorm(32, 64)(nchw(x))), atol=1e-4)


def test_prelu_has_a_slope_for_each_channel():
  """In the pass of the BatchNorm, which at its initial statistics divides by √(1 + ε) and nothing else."""
  initial = PReLUSlope().init(jax.random.key(0), 4)["params"]["slope"]
  np.testing.assert_array_equal(initial, np.full(4, 0.25, np.float32))
  x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
  norm, slope = BatchNorm(1e-3), jnp.array([0.1, 0.5, -0.3, 2.0])
  ours = norm.apply(norm.init(jax.random.key(0), x, train=False), x, train=False, slope=slope)
  theirs = torch.nn.functional.prelu(nchw(x / np.float32(1.001**0.5)), torch.from_numpy(np.array(slope)))
  np.testing.assert_allclose(ours, nhwc(theirs), atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("train", [True, False])
def test_several_maps_count_as_joined(train, platform):
  """Also with a TPU's forms, where columns of the first lie side by side."""
  maps = tuple(image(i, c)[:, :, :4] for i, c in enumerate((32, 3)))
  slope = 0.25 + 0.1 * jnp.arange(35.0)
  norm = BatchNorm(packed=True)
  variables = jax.tree.map(jnp.asarray, filled.variables(norm, np.concatenate(maps, -1)))

  def run(x):
    return norm.apply(variables, x, train=train, slope=slope, mutable=["batch_stats"])

  wanted, statistics = run(np.concatenate(maps, -1))
  with traced_for(platform=platform):
    ours, changed = run(maps)
  np.testing.assert_allclose(np.concatenate(ours, -1), wanted, atol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), changed, statistics)
