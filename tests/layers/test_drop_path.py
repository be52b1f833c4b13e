"""Stochastic depth: what a draw does, and that blocks of different rates are one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.drop_path import DropPath, draw_factors


def run(rate, x, seed=0):
  return DropPath(rate, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(seed)})


def test_samples_are_dropped_whole_and_the_rest_is_divided_by_its_probability():
  x = jnp.ones((4000, 1, 2, 3))
  y = np.asarray(run(0.2, x))
  assert set(np.unique(y.round(6))) == {0.0, 1.25}
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1, :1], y.shape))
  assert abs(y.mean() - 1) < 0.03
  np.testing.assert_array_equal(run(0.0, x), x)
  np.testing.assert_array_equal(run(1.0, x), 0 * x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_rate_that_is_traced_draws_the_same(dtype):
  x = jax.random.normal(jax.random.key(1), (64, 1, 2, 3), dtype)
  traced = jax.jit(run)(jnp.float32(0.3), x)
  assert traced.dtype == dtype
  np.testing.assert_array_equal(traced, jax.jit(run, static_argnums=0)(0.3, x))


def test_nothing_but_the_factor_knows_the_rate():
  """XLA compiles equal blocks once, unless constants of their rates lie in what they do."""
  x = jnp.ones((2, 4, 4, 3))
  programs = [str(jax.make_jaxpr(lambda x, rate=rate: run(rate, x))(x)) for rate in (0.1, 0.2)]
  (before, after), (other_before, other_after) = (text.split("optimization_barrier") for text in programs)
  assert before != other_before and after == other_after


def test_a_stage_draws_for_all_of_its_blocks():
  first, *rest = draw_factors(jax.random.key(0), [0.0, 0.2, 1.0], 4000)
  assert first == 0.0, "a block that drops nothing multiplies by nothing"
  low, all_gone = np.asarray(rest)
  assert low.shape == (2, 4000) and set(np.unique(low)) == {0.0, np.float32(1.25)} and not all_gone.any()
  assert abs(low.mean(1) - 1).max() < 0.03 and np.any(low[0] != low[1]), "each branch has draws of its own"
