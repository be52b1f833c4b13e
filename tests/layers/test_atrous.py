"""Convolution with BatchNorm: padding rules, the folded form, activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxseg.layers.atrous import ConvNorm, SeparableConv, check_output_stride


def _x(*shape) -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("size, before", [((9, 9), 1), ((8, 8), 0)])
def test_same_padding_is_tensorflows(size, before):
  """At stride 2 a 3×3 starts one pixel outside an odd map and on the first pixel of an even one."""
  layer = ConvNorm(1, 3, 2, activation="none", padding="same", folded=True)
  x = _x(1, *size, 1)
  variables = layer.init(jax.random.key(0), x, train=False)
  pixel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
  y = layer.apply({"params": {"conv": variables["params"]["conv"] | {"kernel": pixel}}}, x, train=False)
  np.testing.assert_allclose(y, x[:, 1 - before :: 2, 1 - before :: 2])


def test_folded_equals_batchnorm():
  """A bias and a scaled kernel give what BatchNorm's stored statistics give."""
  x, plain = _x(2, 7, 9, 5), ConvNorm(6, 3, 1, 2, activation="relu6")
  variables = plain.init(jax.random.key(1), x, train=False)
  rng = np.random.default_rng(3)
  norm = {k: jnp.asarray(rng.uniform(0.5, 3, 6), jnp.float32) for k in ("scale", "bias")}
  stats = {k: jnp.asarray(rng.uniform(0.5, 2, 6), jnp.float32) for k in ("mean", "var")}
  kernel = variables["params"]["conv"]["kernel"]
  factor = norm["scale"] / np.sqrt(stats["var"] + 1e-5)
  folded = {"kernel": kernel * factor, "bias": norm["bias"] - stats["mean"] * factor}
  expected = plain.apply(
    {"params": {"conv": {"kernel": kernel}, "norm": norm}, "batch_stats": {"norm": stats}}, x, train=False
  )
  ours = plain.clone(folded=True).apply({"params": {"conv": folded}}, x, train=False)
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  assert expected.min() == 0 and expected.max() == 6


def test_separable_is_depthwise_then_pointwise():
  x, layer = _x(2, 9, 7, 4), SeparableConv(3, 2, 1)
  variables = layer.init(jax.random.key(1), x, train=False)
  shapes = jax.tree.map(jnp.shape, variables["params"])
  assert shapes["depthwise"]["conv"] == {"kernel": (3, 3, 1, 4)}
  assert shapes["pointwise"]["conv"] == {"kernel": (1, 1, 4, 3)}
  params = variables["params"]
  t = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
  depthwise = torch.from_numpy(np.array(params["depthwise"]["conv"]["kernel"])).permute(3, 2, 0, 1)
  pointwise = torch.from_numpy(np.array(params["pointwise"]["conv"]["kernel"])).permute(3, 2, 0, 1)
  unit = 1 / np.sqrt(1 + 1e-5)
  t = torch.relu(torch.nn.functional.conv2d(t, depthwise, stride=2, padding=1, groups=4) * unit)
  t = torch.relu(torch.nn.functional.conv2d(t, pointwise) * unit)
  ours = layer.apply(variables, x, train=False)
  np.testing.assert_allclose(ours, t.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_output_stride_sentence():
  with pytest.raises(ValueError, match="output_stride is 4, but ResNet gives 8, 16 or 32; choose one"):
    check_output_stride("ResNet", 4)
