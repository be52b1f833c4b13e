"""The sum of 1×1s at each level's own resolution is the 1×1 over the concat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.concat_conv import ConcatConv, concat_conv, concat_conv_reference


@pytest.fixture(scope="module")
def levels():
  rng = np.random.default_rng(0)
  # The second is finer than the size at which they meet, the last has fewer pixels than channels.
  shapes = [(2, 9, 13, 4), (2, 17, 25, 3), (2, 5, 7, 6), (1, 2, 3, 8)]
  return [jnp.asarray(rng.standard_normal((2, *s[1:])), jnp.float32) for s in shapes]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_equals_the_definition(levels, align_corners, projected):
  rng = np.random.default_rng(1)
  projections = None
  width = sum(x.shape[-1] for x in levels)
  if projected:
    projections = [
      (rng.standard_normal((x.shape[-1], 5)).astype(np.float32), rng.standard_normal(5).astype(np.float32))
      for x in levels
    ]
    projections, width = jax.tree.map(jnp.asarray, projections), 20
  kernel = jnp.asarray(rng.standard_normal((1, 1, width, 10)), jnp.float32)
  fields = dict(projections=projections, align_corners=align_corners)

  def loss(function, kernel, levels):
    y = function(levels, kernel, (9, 13), **fields)
    return jnp.sum(jnp.sin(y)), y

  ours, theirs = (
    jax.jit(jax.value_and_grad(lambda k, x, f=f: loss(f, k, x), argnums=(0, 1), has_aux=True))(kernel, levels)
    for f in (concat_conv, concat_conv_reference)
  )
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_module_has_one_kernel_over_all_widths(levels):
  module = ConcatConv(10)
  variables = jax.jit(lambda key: module.init(key, levels, (9, 13)))(jax.random.key(0))
  assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (1, 1, 21, 10)}}
  apply = lambda module: jax.jit(lambda v: module.apply(v, levels, (9, 13)))(variables)  # noqa: E731
  half = apply(ConcatConv(10, dtype=jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), apply(module), atol=0.2)


def test_a_projections_bias_has_a_float32_gradient():
  """In bfloat16 a sum of ones stops at 256; each pixel counts one."""
  x, bias = jnp.ones((1, 64, 64, 2), jnp.bfloat16), jnp.zeros(2, jnp.bfloat16)
  kernel = jnp.eye(2, dtype=jnp.bfloat16)

  def total(bias):
    return (
      concat_conv([x], kernel[None, None], (64, 64), projections=[(kernel, bias)]).astype(jnp.float32).sum()
    )

  with jax.disable_jit():
    gradient = jax.grad(total)(bias)
  np.testing.assert_array_equal(np.float32(gradient), 64 * 64)
