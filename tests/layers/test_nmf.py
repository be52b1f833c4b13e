"""NMF against its definition in float64, its gradients, and where its dictionary comes from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.nmf import NMF, draw_bases, nmf, nmf_reference, times_in_parts
from jaxseg.ops.definition import traced_for


def _definition(x, bases, steps, inv_t):
  """The paper's updates, one matrix, in float64."""
  x, bases = np.float64(x), np.float64(bases)
  scores = inv_t * x @ bases
  coefficients = np.exp(scores - scores.max(-1, keepdims=True))
  coefficients /= coefficients.sum(-1, keepdims=True)
  for _ in range(steps):
    coefficients = coefficients * (x @ bases) / (coefficients @ (bases.T @ bases) + 1e-6)
    bases = bases * (x.T @ coefficients) / (bases @ (coefficients.T @ coefficients) + 1e-6)
  coefficients = coefficients * (x @ bases) / (coefficients @ (bases.T @ bases) + 1e-6)
  return coefficients @ bases.T


@pytest.fixture(scope="module")
def case():
  rng = np.random.default_rng(0)
  x = np.maximum(rng.standard_normal((2, 30, 12)), 0).astype(np.float32)
  return x, np.asarray(draw_bases(jax.random.key(1), (1, 12, 5)))


@pytest.mark.parametrize(("steps", "inv_t"), [(0, 1.0), (7, 1.0), (6, 100.0)])
def test_definition(case, steps, inv_t):
  x, bases = case
  ours = jax.jit(lambda x, b: nmf(x, b, steps=steps, inv_t=inv_t))(x, bases)
  expected = np.stack([_definition(image, bases[0], steps, inv_t) for image in x])
  np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-5)


def test_rank_one_is_recovered():
  """A product of two non-negative vectors is its own best approximation."""
  rng = np.random.default_rng(1)
  x = np.outer(rng.uniform(1, 2, 20), rng.uniform(1, 2, 6)).astype(np.float32)
  np.testing.assert_allclose(nmf(x, draw_bases(jax.random.key(0), (6, 1)), steps=3), x, rtol=1e-4)


def test_full_gradient_is_that_of_the_definition(case):
  x, bases = case
  x = x[0].astype(np.float64) + 0.1
  direction = np.random.default_rng(2).standard_normal(x.shape)
  weight = np.random.default_rng(3).standard_normal(x.shape)
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(weight * nmf(x, bases[0], steps=6))))(jnp.float32(x))
  h = 1e-6
  above, below = (_definition(x + step * direction, bases[0], 6, 1.0) for step in (h, -h))
  numeric = np.sum(weight * (above - below)) / (2 * h)
  np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), numeric, rtol=2e-3)


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_its_own_gradients_are_those_of_the_definition(case, steps):
  x, bases = case
  weight = np.random.default_rng(3).standard_normal(x.shape)

  def gradients(function):
    run = lambda x, bases: jnp.sum(weight * function(x, bases, steps=steps, inv_t=2.0))  # noqa: E731
    return jax.jit(jax.grad(run, (0, 1)))(x, bases)

  for ours, theirs in zip(gradients(nmf), gradients(nmf_reference), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_a_product_in_parts_has_float32s_precision():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 40, 30)), jnp.bfloat16)
  y = jnp.asarray(rng.standard_normal((2, 30, 5)) * 10.0 ** rng.integers(-3, 4, (2, 30, 5)), jnp.float32)
  wanted = np.float64(x) @ np.float64(y)
  found = jax.jit(times_in_parts)(x, y)
  bound = np.abs(np.float64(x)) @ np.abs(np.float64(y))  # of what float32 can lose
  assert found.dtype == jnp.float32 and np.max(np.abs(found - wanted) / bound) < 2**-22


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_of_bfloat16_it_is_that_of_the_same_numbers_in_float32(case, platform):
  x, bases = jnp.asarray(case[0], jnp.bfloat16), case[1]
  weight = np.random.default_rng(3).standard_normal(x.shape)

  def run(x):
    total = lambda x: jnp.sum(weight * nmf(x, bases, steps=6))  # noqa: E731
    return nmf(x, bases, steps=6), jax.grad(total)(x)

  with traced_for(platform=platform):
    y, dx = jax.jit(lambda x: run(x))(x)
  wanted, of_x = jax.jit(run)(x.astype(jnp.float32))
  assert y.dtype == jnp.float32 and dx.dtype == jnp.bfloat16
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(np.float32(dx), of_x, rtol=2**-7, atol=1e-4 * np.abs(of_x).max())


def test_one_step_gradient_treats_the_iterations_as_constants(case):
  x, bases = case
  x, weight = jnp.asarray(x[0] + 0.1), np.random.default_rng(3).standard_normal(x[0].shape)
  loss = {
    kind: lambda x, kind=kind: jnp.sum(weight * nmf(x, bases[0], steps=6, gradient=kind))
    for kind in ("full", "one_step")
  }
  np.testing.assert_array_equal(loss["full"](x), loss["one_step"](x))
  one = jax.jit(jax.grad(loss["one_step"]))(x)

  # Written out: only x · bases of the last update depends on x.
  coefficients = jax.nn.softmax(x @ bases[0])
  b = jnp.asarray(bases[0])
  for _ in range(6):
    coefficients = coefficients * (x @ b) / (coefficients @ (b.T @ b) + 1e-6)
    b = b * (x.T @ coefficients) / (b @ (coefficients.T @ coefficients) + 1e-6)
  expected = ((weight @ b) * coefficients / (coefficients @ (b.T @ b) + 1e-6)) @ b.T
  np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-5)
  assert np.abs(one - jax.jit(jax.grad(loss["full"]))(x)).max() > 1e-2


def test_bases_are_unit_norm_and_non_negative():
  bases = draw_bases(jax.random.key(0), (3, 7, 4))
  assert bases.min() >= 0
  np.testing.assert_allclose(np.linalg.norm(bases, axis=1), 1, rtol=1e-6)


@functools.partial(jax.jit, static_argnames=("module", "train"))
def _apply(module, variables, x, *, train=False, rngs=None):
  return module.apply(variables, x, train=train, rngs=rngs)


def _init(module, x):
  return jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))


def _features(batch=2, channels=8):
  x = np.random.default_rng(4).standard_normal((batch, 5, 6, channels))
  return np.maximum(x, 0).astype(np.float32)


def test_evaluation_repeats_to_the_bit_and_training_redraws():
  x = _features()
  module = NMF(rank=3)
  variables = _init(module, x)
  assert jax.tree.map(jnp.shape, variables) == {"buffers": {"bases": (1, 8, 3)}}

  run = lambda v, rngs, train: _apply(module, v, x, train=train, rngs=rngs)  # noqa: E731
  first = run(variables, {"nmf": jax.random.key(1)}, False)
  np.testing.assert_array_equal(first, run(variables, {"nmf": jax.random.key(2)}, False))
  drawn = [run(variables, {"nmf": jax.random.key(seed)}, True) for seed in (1, 1, 2)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert np.abs(drawn[0] - drawn[2]).max() > 1e-3
  # Without the key the stored dictionary serves in training too.
  stored = _apply(NMF(rank=3, eval_steps=6), variables, x)
  np.testing.assert_array_equal(run(variables, {}, True), stored)


def test_initialised_in_training_it_has_its_buffer_too():
  x, keys = _features(), {"params": jax.random.key(0), "nmf": jax.random.key(1)}
  in_training, in_evaluation = (
    jax.jit(lambda keys, train=train: NMF(rank=3).init(keys, x, train=train))(keys) for train in (True, False)
  )
  np.testing.assert_array_equal(in_training["buffers"]["bases"], in_evaluation["buffers"]["bases"])


def test_without_a_buffer_evaluation_draws_the_same_every_time():
  x = _features()
  first = _apply(NMF(rank=3), {}, x)
  np.testing.assert_array_equal(first, _apply(NMF(rank=3), {}, x))
  assert np.all(np.isfinite(first)) and np.abs(first).max() > 0


def test_each_image_has_its_own_draw_and_its_own_result():
  """The same image twice: equal with the stored dictionary, different with one drawn for each."""
  x = _features(batch=1).repeat(2, 0)
  module = NMF(rank=3)
  variables = _init(module, x)
  stored = _apply(module, variables, x)
  np.testing.assert_allclose(stored[0], stored[1], rtol=1e-5)
  drawn = _apply(module, variables, x, train=True, rngs={"nmf": jax.random.key(1)})
  assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


def test_heads_split_the_channels():
  x = _features()
  module = NMF(rank=3, heads=2)
  variables = _init(module, x)
  bases = np.asarray(variables["buffers"]["bases"])
  assert bases.shape == (2, 4, 3)
  ours = _apply(module, variables, x)
  for head in range(2):
    part = x[..., 4 * head : 4 * head + 4]
    expected = [_definition(image.reshape(30, 4), bases[head], 7, 1.0).reshape(5, 6, 4) for image in part]
    np.testing.assert_allclose(ours[..., 4 * head : 4 * head + 4], np.stack(expected), rtol=1e-3, atol=1e-5)


def test_over_channels_transposes():
  """The tokens are channels: the factorisation of the transposed matrix, whatever the image's size."""
  module = NMF(rank=3, over="channels")
  x = _features(batch=1)
  assert "buffers" not in _init(module, x)
  ours = _apply(module, {}, x, train=True, rngs={"nmf": jax.random.key(5)})

  class Probe(NMF):
    """The same module, made to give the dictionary that it draws."""

    def _bases(self, batch, d, train):
      bases = super()._bases(batch, d, train)
      self.sow("intermediates", "bases", bases)
      return bases

  @jax.jit
  def probe():
    rngs = {"nmf": jax.random.key(5)}
    return Probe(rank=3, over="channels").apply({}, x, train=True, rngs=rngs, mutable=["intermediates"])[1]

  seen = probe()
  bases = np.asarray(seen["intermediates"]["bases"][0])[0, 0]
  expected = _definition(x[0].reshape(30, 8).T, bases, 6, 1.0).T.reshape(5, 6, 8)
  np.testing.assert_allclose(ours[0], expected, rtol=1e-3, atol=1e-5)
  assert _apply(module, {}, _features()[:, :3]).shape == (2, 3, 6, 8)


def test_bfloat16_input_is_factorised_in_float32():
  x = _features()
  module = NMF(rank=3)
  variables = _init(module, x)
  rounded = jnp.asarray(x, jnp.bfloat16)
  half = _apply(module, variables, rounded)
  assert half.dtype == jnp.bfloat16
  exact = _apply(module, variables, rounded.astype(jnp.float32))
  np.testing.assert_array_equal(half, exact.astype(jnp.bfloat16))


def test_wrong_dictionary_and_heads_are_refused():
  x = _features()
  with pytest.raises(ValueError, match=r"shape \(1, 8, 3\).*need \(1, 8, 4\); set rank"):
    _apply(NMF(rank=4), _init(NMF(rank=3), x), x)
  with pytest.raises(ValueError, match="8 channels for heads=3"):
    _init(NMF(heads=3), x)
