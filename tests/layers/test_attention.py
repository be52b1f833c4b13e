"""Attention against its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxseg.layers.attention import SpatialReductionAttention, attention
from jaxseg.layers.context import CrissCross, ExpectationMaximization, NonLocal
from jaxseg.ops import attention as ops


def _softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def test_attention_is_softmax_of_scaled_products():
  rng = np.random.default_rng(0)
  q, k, v = (rng.standard_normal((2, n, 3, 4)) for n in (6, 5, 5))
  weights = _softmax(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)
  expected = np.einsum("bhnm,bmhd->bnhd", weights, v)
  ours = attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", [1, 2])
def test_spatial_reduction_equals_torch(reduction):
  """PyTorch's own multi-head attention on a map of odd size, whose last row and column are not read."""
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, 5, 7, 6)).astype(np.float32)
  module = SpatialReductionAttention(num_heads=3, reduction=reduction, epsilon=1e-5)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  params = jax.tree.map(lambda p: 0.5 * rng.standard_normal(p.shape).astype(np.float32), variables["params"])
  ours = jax.jit(module.apply)({"params": params}, x)

  tokens = source = torch.from_numpy(x).flatten(1, 2)
  if reduction > 1:
    kernel, bias = (torch.from_numpy(params["reduce"][name]) for name in ("kernel", "bias"))
    source = torch.from_numpy(x).permute(0, 3, 1, 2)
    source = torch.nn.functional.conv2d(source, kernel.permute(3, 2, 0, 1), bias, stride=reduction)
    scale, shift = (torch.from_numpy(params["reduce_norm"][name]) for name in ("scale", "bias"))
    source = torch.nn.functional.layer_norm(source.flatten(2).mT, (6,), scale, shift, 1e-5)
  theirs = torch.nn.MultiheadAttention(6, 3, batch_first=True)
  names = ("query", "key", "value")
  theirs.load_state_dict(
    {
      "in_proj_weight": torch.from_numpy(np.concatenate([params[n]["kernel"].T for n in names])),
      "in_proj_bias": torch.from_numpy(np.concatenate([params[n]["bias"] for n in names])),
      "out_proj.weight": torch.from_numpy(params["out"]["kernel"].T.copy()),
      "out_proj.bias": torch.from_numpy(params["out"]["bias"]),
    }
  )
  with torch.no_grad():
    expected = theirs(tokens, source, source, need_weights=False)[0].reshape(x.shape).numpy()
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def _with_random_parameters(module, x):
  variables = jax.jit(module.init)(jax.random.key(0), x)
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), variables)


def test_criss_cross_equals_masked_full_attention():
  """One pass is attention over all pixels where those off the pixel's row and column are masked."""
  x = np.random.default_rng(3).standard_normal((1, 4, 5, 8)).astype(np.float32)
  module = CrissCross(recurrence=1, reduction=2)
  variables = _with_random_parameters(module, x)
  p = variables["params"]
  q, k, v = (x.reshape(20, 8) @ p[n]["kernel"][0, 0] + p[n]["bias"] for n in ("query", "key", "value"))
  row, column = np.divmod(np.arange(20), 5)
  seen = (row[:, None] == row) | (column[:, None] == column)
  weights = _softmax(np.where(seen, q @ k.T, -np.inf))
  expected = x + (p["gamma"] * weights @ v).reshape(x.shape)
  np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_non_local_is_attention_over_all_pixels():
  x = np.random.default_rng(4).standard_normal((1, 3, 5, 8)).astype(np.float32)
  variables = _with_random_parameters(NonLocal(), x)
  p = variables["params"]
  q, k, v = (x.reshape(15, 8) @ p[n]["kernel"][0, 0] + p[n]["bias"] for n in ("query", "key", "value"))
  expected = (_softmax(q @ k.T / 2) @ v).reshape(1, 3, 5, 4)
  np.testing.assert_allclose(jax.jit(NonLocal().apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


def test_em_rebuilds_pixels_and_moves_its_bases_only_in_training():
  x = np.abs(np.random.default_rng(5).standard_normal((2, 4, 5, 6))).astype(np.float32)
  module = ExpectationMaximization(rank=3, steps=2, momentum=0.25)
  variables = jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))
  start = np.float64(variables["buffers"]["bases"])
  norm = lambda b: b / (np.linalg.norm(b, axis=0, keepdims=True) + 1e-6)  # noqa: E731
  rebuilt, fits = [], []
  for pixels in np.float64(x.reshape(2, 20, 6)):
    bases = start
    for _ in range(2):
      weights = _softmax(pixels @ bases)
      bases = norm(pixels.T @ (weights / (weights.sum(0) + 1e-6)))
    fits.append(bases)
    rebuilt.append(np.maximum(_softmax(pixels @ bases) @ bases.T, 0))
  expected = np.stack(rebuilt).reshape(x.shape)
  run = jax.jit(lambda v, train: module.apply(v, x, train=train, mutable=["buffers"]), static_argnums=1)
  ours, same = run(variables, False)
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
  _, moved = run(variables, True)
  np.testing.assert_allclose(
    moved["buffers"]["bases"], 0.75 * start + 0.25 * norm(np.mean(fits, 0)), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_array_equal(same["buffers"]["bases"], variables["buffers"]["bases"])


@pytest.mark.parametrize("width", [6, 7])
def test_of_many_scores_queries_are_taken_in_parts(monkeypatch, width):
  x = np.random.default_rng(7).standard_normal((2, 4, width, 8)).astype(np.float32)
  module = SpatialReductionAttention(2, reduction=2)
  variables = _with_random_parameters(module, x)

  def run(variables, x):
    y, vjp = jax.vjp(module.apply, variables, x)
    return y, vjp(jnp.cos(y))

  whole = jax.jit(run)(variables, x)
  monkeypatch.setattr(ops, "MANY_SCORES", 1)
  monkeypatch.setattr(ops, "PART_SCORES", 2 * 2 * 10 * 6)  # ten queries of both images and heads
  assert "length=3" in str(jax.make_jaxpr(module.apply)(variables, x)), "the width need not divide"
  parts = jax.jit(lambda *a: run(*a))(variables, x)
  # The gradient of the keys' bias is 0, and what is there is rounding of the others' size.
  scale = max(float(np.abs(b).max()) for b in jax.tree.leaves(whole))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * scale), parts, whole)


def test_its_biases_have_float32_gradients():
  """In bfloat16 a sum of ones stops at 256; each pixel counts one."""
  layer = SpatialReductionAttention(1, 4, dtype=jnp.bfloat16)
  x = jnp.ones((1, 32, 32, 16), jnp.bfloat16)
  params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
  total = lambda params: layer.apply({"params": params}, x).astype(jnp.float32).sum()  # noqa: E731
  np.testing.assert_array_equal(jax.jit(jax.grad(total))(params)["out"]["bias"], 32 * 32)
