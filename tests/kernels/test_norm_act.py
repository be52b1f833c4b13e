"""BatchNorm with activation equals its plain definition, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.kernels.norm_act import batch_norm_act, batch_norm_act_reference


@pytest.mark.parametrize("slope", [None, 0.0, 0.25], ids=["no activation", "ReLU", "PReLU"])
def test_equals_the_definition(slope):
  keys = jax.random.split(jax.random.key(0), 5)
  x = 3 + 2 * jax.random.normal(keys[0], (4, 6, 5, 7))
  scale, bias = 1 + 0.3 * jax.random.normal(keys[1], (7,)), jax.random.normal(keys[2], (7,))
  slopes = None if slope is None else slope + 0.1 * jax.random.normal(keys[3], (7,))
  dy = jax.random.normal(keys[4], x.shape)

  def gradients(function):
    def objective(x, scale, bias, slopes):
      y, _, _ = function(x, scale, bias, slopes, epsilon=1e-3)
      return (y * dy).sum()

    return jax.grad(objective, argnums=(0, 1, 2) + ((3,) if slopes is not None else ()))(
      x, scale, bias, slopes
    )

  ours = batch_norm_act(x, scale, bias, slopes, epsilon=1e-3)
  reference = batch_norm_act_reference(x, scale, bias, slopes, epsilon=1e-3)
  for a, b in zip(ours, reference, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # the definition's own sums round in float32
  for a, b in zip(gradients(batch_norm_act), gradients(batch_norm_act_reference), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_keeps_only_the_input_for_the_derivative():
  """The residuals hold one array as large as the input: that is the point of the kernel."""
  x, c = jnp.ones((2, 8, 8, 4)), jnp.ones(4)
  function = functools.partial(batch_norm_act, epsilon=1e-3)
  _, pull = jax.vjp(function, x, c, c, c)
  large = [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "size", 0) >= x.size]
  assert len(large) == 1
