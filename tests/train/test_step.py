"""The step: what it changes, what it reports, that it repeats, and that it compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import sharding
from jaxseg.train import create_state, jit_step, make_loss, make_optimizer, make_step

from . import tiny


def build(model, config=None, **arguments):
  variables = tiny.variables(model)
  tx = make_optimizer(config or {"name": "sgd", "learning_rate": 0.1}, variables["params"])
  return create_state(model, variables, tx), make_step(make_loss({}), tx, **arguments)


def test_one_step_is_gradient_statistics_and_optimizer_by_hand():
  model = tiny.Tiny()
  state, step = build(model, {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0})
  batch = tiny.batch()
  after, scalars = jax.jit(step)(state, batch, jax.random.key(0))

  def loss(params):
    outputs, changed = model.apply(
      {"params": params, **state.model_state}, batch["image"], train=True, mutable=["batch_stats"]
    )
    return make_loss({})(outputs, batch["label"])[0], changed

  (expected, changed), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
  np.testing.assert_allclose(scalars["loss"], expected, rtol=1e-6)
  np.testing.assert_allclose(scalars["loss/logits"], expected, rtol=1e-6)
  np.testing.assert_allclose(scalars["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
  assert bool(scalars["finite"])
  assert int(after.step) == 1
  for mine, grad, before in zip(*map(jax.tree.leaves, (after.params, grads, state.params)), strict=True):
    np.testing.assert_allclose(mine, before - 0.1 * grad, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    after.model_state["batch_stats"],
    changed["batch_stats"],
  )
  np.testing.assert_array_equal(after.model_state["buffers"]["gain"], 2.0)


def test_loss_falls():
  state, step = build(tiny.Tiny(), {"name": "adam", "learning_rate": 1e-2})
  step, losses = jax.jit(step), []
  for i in range(60):
    state, scalars = step(state, tiny.batch(i), jax.random.key(0))
    losses.append(float(scalars["loss"]))
  assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_noise_is_a_function_of_key_and_step():
  state, step = build(tiny.Tiny(rate=0.5))
  step, batch = jax.jit(step), tiny.batch()

  def loss(state, seed):
    return float(step(state, batch, jax.random.key(seed))[1]["loss"])

  later = state.replace(step=state.step + 1)
  assert loss(state, 0) == loss(state, 0)
  assert len({loss(state, 0), loss(later, 0), loss(state, 1)}) == 3


def test_streams_are_those_asked_for():
  seen = []

  class Model(tiny.Tiny):
    def __call__(self, image, *, train):
      seen.append({name for name in ("dropout", "drop_path", "nmf") if self.has_rng(name)})
      return super().__call__(image, train=train)

  for streams in (("dropout", "drop_path"), ("dropout", "nmf")):
    state, step = build(Model(), streams=streams)
    jax.eval_shape(step, state, tiny.batch(), jax.random.key(0))
    assert seen[-1] == set(streams)


def test_prepare_runs_inside_with_a_key_of_its_own():
  def prepare(batch, key):
    return {**batch, "image": batch["image"].astype(jnp.float32) / 255 + jax.random.uniform(key)}

  state, step = build(tiny.Tiny(), prepare=prepare)
  batch = {"image": np.zeros((2, 8, 8, 3), np.uint8), "label": np.zeros((2, 8, 8), np.int32)}
  step = jax.jit(step)
  first, second = (step(state, batch, jax.random.key(seed))[1]["loss"] for seed in (0, 1))
  assert first != second


def test_finite_flag_falls_for_a_bad_loss_and_for_a_bad_gradient():
  state, step = build(tiny.Tiny())
  step, batch = jax.jit(step), tiny.batch()
  bad = {**batch, "image": np.where(batch["image"] == batch["image"].max(), np.nan, batch["image"])}
  assert not bool(step(state, bad, jax.random.key(0))[1]["finite"])

  # sqrt at 0: the loss is finite, its gradient is not.
  loss_fn = lambda outputs, labels: (jnp.sum(jnp.sqrt(outputs["logits"] * 0.0)), {})  # noqa: E731
  scalars = jax.jit(make_step(loss_fn, state.tx))(state, batch, jax.random.key(0))[1]
  assert np.isfinite(scalars["loss"])
  assert not bool(scalars["finite"])


def test_compiles_once_and_moves_nothing_from_the_host():
  traces = []
  model = tiny.Tiny()
  variables = tiny.variables(model)
  tx = make_optimizer({"name": "adam", "learning_rate": 1e-2}, variables["params"])
  loss_fn = make_loss({})

  def counted(outputs, labels):
    traces.append(1)
    return loss_fn(outputs, labels)

  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state = sharding.place(create_state(model, variables, tx), mesh)
  step = jit_step(make_step(counted, tx), mesh, state)
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  for i in range(4):
    batch = sharding.to_global(tiny.batch(i), mesh)
    before = state
    with jax.transfer_guard("disallow"):
      state, _ = step(state, batch, key)
  assert len(traces) == 1
  assert int(state.step) == 4
  assert all(x.is_deleted() for x in jax.tree.leaves(before.params)), "the state is donated"
  jax.block_until_ready(variables)  # the caller's own arrays are not


def test_variables_without_params():
  with pytest.raises(ValueError, match=r"variables hold \['batch_stats'\] and no 'params'"):
    create_state(tiny.Tiny(), {"batch_stats": {}}, optax.sgd(1.0))
