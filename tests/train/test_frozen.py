"""Frozen parameters and BatchNorms, micro-batches and the moving average, each against what it stands for."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from jaxseg.layers.norm import BatchNorm
from jaxseg.train import create_state, make_loss, make_optimizer, make_step

from . import tiny

STEPS = 10
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
ADAMW = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "grad_clip": 1.0}


class Net(nn.Module):
  """Convolutions with (or without) our BatchNorm between them."""

  norm: bool = True

  @nn.compact
  def __call__(self, image, *, train: bool):
    x = nn.Conv(8, (3, 3), strides=2, padding=1, name="conv")(image)
    if self.norm:
      x = BatchNorm(name="norm")(x, train=train)
    x = nn.Conv(6, (1, 1), name="middle")(nn.relu(x))
    if self.norm:
      x = BatchNorm(name="late_norm")(x, train=train)
    return {"logits": nn.Conv(3, (1, 1), name="classifier")(nn.relu(x))}


def run(model, config, *, steps=STEPS, loss=None, size=4, **features):
  """The state after some steps, all states' parameters on the way, and the last scalars."""
  variables = tiny.variables(model)
  frozen = features.get("frozen", ())
  tx = make_optimizer(config, variables["params"], frozen=frozen)
  state = create_state(model, variables, tx, ema=bool(features.get("ema_decay")))
  traces = []
  loss_fn = make_loss(loss or {})

  def counted(*args):
    traces.append(1)
    return loss_fn(*args)

  step = jax.jit(make_step(counted, tx, **features))
  history, compiled = [state.params], 0
  for i in range(steps):
    state, scalars = step(state, tiny.batch(i, size=size), jax.random.key(0))
    history.append(state.params)
    compiled = compiled or len(traces)
  assert len(traces) == compiled, "no step after the first is traced again"
  return state, history, scalars


def same_bits(a, b):
  return all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_frozen_parameters_and_their_batch_norm_stay_to_the_bit():
  state, history, scalars = run(Net(), ADAMW, frozen=("conv/.*", "norm/.*", "middle/bias"))
  start = history[0]
  for name in ("conv", "norm"):
    assert same_bits(state.params[name], start[name])
  assert same_bits(state.params["middle"]["bias"], start["middle"]["bias"])
  assert not same_bits(state.params["middle"]["kernel"], start["middle"]["kernel"])
  fresh = tiny.variables(Net())["batch_stats"]
  assert same_bits(state.model_state["batch_stats"]["norm"], fresh["norm"])
  assert not same_bits(state.model_state["batch_stats"]["late_norm"], fresh["late_norm"])
  # Nothing is kept for what is not trained: the moments are those of the rest.
  trained = sum(x.size for x in jax.tree.leaves(start)) - sum(
    x.size for x in jax.tree.leaves((start["conv"], start["norm"], start["middle"]["bias"]))
  )
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert moments == 2 * trained
  assert np.isfinite(scalars["grad_norm"])


def test_frozen_batch_norm_is_that_of_evaluation_and_half_frozen_trains():
  model = Net()
  variables = tiny.variables(model)
  variables["batch_stats"] = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
  tx = make_optimizer(SGD, variables["params"])
  state = create_state(model, variables, tx)
  batch = tiny.batch()

  def loss_of(frozen):
    step = jax.jit(make_step(make_loss({}), tx, frozen=frozen))
    return float(step(state, batch, jax.random.key(0))[1]["loss"])

  @jax.jit
  def evaluation(variables, batch):
    return make_loss({})(model.apply(variables, batch["image"], train=False), batch["label"])[0]

  expected = evaluation(variables, batch)
  np.testing.assert_allclose(loss_of((r".*norm/.*",)), expected, rtol=1e-6)
  # A BatchNorm of which only the scale is frozen goes on with the batch's statistics.
  assert abs(loss_of((r".*norm/scale",)) - float(expected)) > 1e-3


def test_ten_frozen_steps_equal_torch():
  """A frozen convolution and BatchNorm in PyTorch: requires_grad False, eval(), as detectors do it."""
  model = Net()
  start = tiny.variables(model)
  conv = lambda name, **k: torch.nn.Conv2d(*start["params"][name]["kernel"].shape[2:], **k)  # noqa: E731
  layers = {
    "conv": conv("conv", kernel_size=3, stride=2, padding=1),
    "norm": torch.nn.BatchNorm2d(8),
    "middle": conv("middle", kernel_size=1),
    "late_norm": torch.nn.BatchNorm2d(6),
    "classifier": conv("classifier", kernel_size=1),
  }
  for name, layer in layers.items():
    for key, x in start["params"][name].items():
      target = layer.bias if key == "bias" else layer.weight
      target.data = torch.tensor(np.asarray(x).transpose(3, 2, 0, 1) if x.ndim == 4 else np.asarray(x))
  for name in ("conv", "norm"):
    layers[name].requires_grad_(False).eval()
  trained = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
  optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True)
  for i in range(STEPS):
    batch = tiny.batch(i)
    x = torch.tensor(batch["image"].transpose(0, 3, 1, 2))
    x = layers["late_norm"](layers["middle"](torch.relu(layers["norm"](layers["conv"](x)))))
    x = torch.nn.functional.interpolate(layers["classifier"](torch.relu(x)), (16, 16), mode="bilinear")
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(batch["label"]).long(), ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
  state, _, scalars = run(model, {**SGD, "nesterov": True}, frozen=("conv/.*", "norm/.*"))
  np.testing.assert_allclose(scalars["loss"], loss.item(), rtol=1e-5)
  for name, layer in layers.items():
    kernel = layer.weight.detach().numpy()
    kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel
    ours = state.params[name].get("kernel", state.params[name].get("scale"))
    np.testing.assert_allclose(ours, kernel, atol=1e-5)
  np.testing.assert_allclose(
    state.model_state["batch_stats"]["late_norm"]["var"], layers["late_norm"].running_var, rtol=1e-4
  )


def test_micro_batches_are_the_whole_batch_without_batch_norm():
  # Over all pixels, since the parts have unequal numbers of labelled ones.
  features = dict(loss={"normalize_by": "all"}, size=8)
  whole, _, scalars = run(Net(norm=False), ADAMW, **features)
  parts, _, part_scalars = run(Net(norm=False), ADAMW, accumulate=4, **features)
  np.testing.assert_allclose(part_scalars["loss"], scalars["loss"], rtol=1e-5)
  np.testing.assert_allclose(part_scalars["grad_norm"], scalars["grad_norm"], rtol=1e-4)
  start = tiny.variables(Net(norm=False))["params"]
  for a, b, before in zip(*map(jax.tree.leaves, (parts.params, whole.params, start)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(a - before).max() > 1e-3


def test_batch_norm_sees_one_micro_batch_after_the_other():
  model, batch = Net(), tiny.batch(size=6)
  variables = tiny.variables(model)
  tx = make_optimizer(SGD, variables["params"])
  step = jax.jit(make_step(make_loss({}), tx, accumulate=3))
  state, scalars = step(create_state(model, variables, tx), batch, jax.random.key(0))
  stats, losses = {"batch_stats": variables["batch_stats"]}, []
  for i in range(3):
    part = jax.tree.map(lambda x: x[i::3], batch)  # noqa: B023
    outputs, stats = model.apply(
      {"params": variables["params"], **stats}, part["image"], train=True, mutable=["batch_stats"]
    )
    losses.append(make_loss({})(outputs, part["label"])[0])
  np.testing.assert_allclose(scalars["loss"], np.mean(losses), rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state.model_state["batch_stats"],
    stats["batch_stats"],
  )


def test_the_average_is_its_closed_form():
  decay = 0.7
  state, history, _ = run(Net(), SGD, ema_decay=decay)
  weights = [decay**STEPS, *((1 - decay) * decay ** (STEPS - i) for i in range(1, STEPS + 1))]
  assert np.isclose(sum(weights), 1)
  expected = jax.tree.map(
    lambda *xs: sum(w * np.float64(x) for w, x in zip(weights, xs, strict=True)), *history
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, expected)
  assert same_bits(state.eval_variables["params"], state.ema)
  assert not same_bits(state.ema, state.params)


@pytest.mark.parametrize(
  ("features", "sentence"),
  [
    ({"frozen": ("convs/.*",)}, r"frozen holds 'convs/.\*', which matches no parameter; there is 'conv/.\*'"),
    ({"frozen": ("(",)}, r"frozen holds '\(', which is no regular expression"),
    ({"frozen": (".*",)}, r"frozen \('.\*',\) matches every parameter; leave something to train"),
    ({"frozen": "conv/.*"}, r"frozen is the text 'conv/.\*', expected a sequence"),
    ({"accumulate": 3}, "a batch of 4 cannot be cut into accumulate=3 parts of one size"),
    ({"accumulate": 0}, "accumulate is 0, expected at least 1"),
    ({"ema_decay": 1.0}, r"ema_decay is 1.0, expected a share in \[0, 1\)"),
    ({"ema_decay": 0.9}, r"the state has no average; create_state\(..., ema=True\)"),
  ],
)
def test_bad_features(features, sentence):
  variables = tiny.variables(Net())
  tx = make_optimizer(SGD, variables["params"])
  make = getattr(make_step, "__wrapped__", make_step)
  with pytest.raises(ValueError, match=sentence):
    step = make(make_loss({}), tx, **features)
    jax.eval_shape(step, create_state(Net(), variables, tx), tiny.batch(), jax.random.key(0))


def test_a_flax_batch_norm_with_a_fixed_field_cannot_be_frozen():
  variables = tiny.variables(tiny.Tiny())
  tx = make_optimizer(SGD, variables["params"])
  step = make_step(make_loss({}), tx, frozen=("norm/.*",))
  with pytest.raises(ValueError, match="norm is frozen, but its use_running_average is a field"):
    jax.eval_shape(step, create_state(tiny.Tiny(), variables, tx), tiny.batch(), jax.random.key(0))
