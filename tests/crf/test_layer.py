"""The CRF as a layer: what it starts from, what it learns, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.crf import CRF, lattice_sizes, mean_field

KERNELS = ((2.0, None, 1.5), (8.0, 30.0, 2.0))


@pytest.mark.parametrize("full", [False, True])
def test_starts_as_mean_field(case, full):
  unary, image = case[0][None], case[1][None]
  layer = CRF(KERNELS, steps=3, method="exact", full_compatibility=full)
  refined, variables = layer.init_with_output(jax.random.key(0), -unary, image)
  assert variables["params"]["compat0"].shape == ((3, 3) if full else ())
  want = mean_field(unary, image, KERNELS, 3)
  np.testing.assert_allclose(jax.nn.softmax(refined, axis=-1), want, atol=1e-5)


def test_every_parameter_gets_a_gradient_and_the_loss_falls(case):
  """Jitted, on the lattice: the way a network would train it."""
  logits, image = -case[0][None], case[1][None]
  label = jnp.asarray(np.arange(11) >= 5).astype(jnp.int32)
  label = jnp.broadcast_to(label, (1, 9, 11))
  layer = CRF(
    KERNELS,
    steps=2,
    method="lattice",
    full_compatibility=True,
    train_widths=True,
    capacity=tuple(3 * size for size in lattice_sizes(image, KERNELS)),
  )
  params = layer.init(jax.random.key(0), logits, image)["params"]
  assert sorted(params) == ["compat0", "compat1", "log_srgb1", "log_sxy0", "log_sxy1"]

  def loss(params):
    refined = layer.apply({"params": params}, logits, image)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(refined, label))

  value_and_grad = jax.jit(jax.value_and_grad(loss))
  first, gradients = value_and_grad(params)
  dead = [path for path, g in jax.tree.leaves_with_path(gradients) if not np.any(g)]
  assert not dead
  assert np.isfinite(first)
  for _ in range(20):
    _, gradients = value_and_grad(params)
    params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradients)
  assert value_and_grad(params)[0] < 0.8 * first
