"""Ten steps of every optimizer against torch.optim, and the rules by parameter name."""

import functools

import jax
import numpy as np
import optax
import pytest
import torch

import jaxseg
from jaxseg.train import make_optimizer, make_schedule, parameter_groups

STEPS = 10


def tree():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
  return {
    "encoder": {"conv": {"kernel": draw(3, 3, 2, 4)}, "norm": {"scale": draw(4), "bias": draw(4)}},
    "decoder": {"classifier": {"kernel": draw(1, 1, 4, 3), "bias": draw(3)}},
  }


def gradients():
  rng = np.random.default_rng(1)
  return [
    jax.tree.map(lambda x: (x * rng.standard_normal(x.shape)).astype(np.float32), tree())
    for _ in range(STEPS)
  ]


GROUPS = (("^decoder/", 10.0, 1.0), ("norm", 1.0, 0.0), ("conv", 0.5, 2.0))
SCHEDULE = {"name": "poly", "power": 0.9, "total_steps": 20, "warmup_steps": 3, "warmup_ratio": 0.1}


def mults(path):
  if path.startswith("decoder/"):
    return 10.0, 1.0
  return (1.0, 0.0) if "norm" in path else (0.5, 2.0)


def run_torch(name, rate, decay, **settings):
  params, groups = {}, []
  for path, x in jax.tree_util.tree_flatten_with_path(tree())[0]:
    path = jax.tree_util.keystr(path, simple=True, separator="/")
    lr_mult, decay_mult = mults(path)
    params[path] = torch.nn.Parameter(torch.tensor(x))
    groups.append({"params": [params[path]], "weight_decay": decay * decay_mult, "mult": lr_mult})
  optimizer = getattr(torch.optim, name)(groups, lr=rate, **settings)
  schedule = make_schedule(SCHEDULE, 1.0)
  for step, grads in enumerate(gradients()):
    for group in optimizer.param_groups:
      group["lr"] = rate * group["mult"] * float(schedule(np.int32(step)))
    for param, grad in zip(params.values(), jax.tree.leaves(grads), strict=True):
      param.grad = torch.tensor(grad)
    optimizer.step()
  return [p.detach().numpy() for p in params.values()]


def run_ours(config):
  params = tree()
  tx = make_optimizer(config, params)
  state = tx.init(params)

  @jax.jit
  def update(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for grads in gradients():
    params, state = update(params, state, grads)
  return jax.tree.leaves(params)


@pytest.mark.parametrize(
  ("name", "torch_name", "settings", "torch_settings"),
  [
    ("adam", "Adam", {"b1": 0.8, "b2": 0.99, "eps": 1e-6}, {"betas": (0.8, 0.99), "eps": 1e-6}),
    ("adam", "Adam", {}, {}),
    ("adamw", "AdamW", {}, {}),
    ("sgd", "SGD", {"momentum": 0.9}, {"momentum": 0.9}),
    ("sgd", "SGD", {"momentum": 0.0}, {}),
    ("sgd", "SGD", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
  ],
)
def test_ten_steps_equal_torch(name, torch_name, settings, torch_settings):
  rate, decay = 1e-2, 0.05
  rules = {"groups": GROUPS, "schedule": SCHEDULE, **settings}
  ours = run_ours({"name": name, "learning_rate": rate, "weight_decay": decay, **rules})
  theirs = run_torch(torch_name, rate, decay, **torch_settings)
  start = jax.tree.leaves(tree())
  for mine, expected, before in zip(ours, theirs, start, strict=True):
    assert np.max(np.abs(expected - before)) > 1e-3, "the parameter must have moved for this to mean anything"
    np.testing.assert_allclose(mine, expected, atol=1e-6, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
  params = tree()
  grads = jax.tree.map(np.ones_like, params)
  config = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "grad_clip": 2.0}
  tx = make_optimizer(config, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(optax.tree.norm(updates), 2.0, rtol=1e-6)


def test_end_value_is_not_multiplied():
  # mmcv interpolates each group from its own rate to the same end.
  schedule = {"name": "poly", "end_value": 1e-3, "total_steps": 2}
  config = {"name": "sgd", "learning_rate": 1e-2, "momentum": 0.0, "groups": GROUPS, "schedule": schedule}
  params = tree()
  tx = make_optimizer(config, params)
  state = tx.init(params)
  grads = jax.tree.map(np.ones_like, params)
  for expected_head, expected_norm in ((1e-1, 1e-2), (0.0505, 0.0055), (1e-3, 1e-3)):
    updates, state = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["decoder"]["classifier"]["bias"], -expected_head, rtol=1e-6)
    np.testing.assert_allclose(updates["encoder"]["norm"]["bias"], -expected_norm, rtol=1e-6)


def test_first_rule_that_is_found_decides():
  params = tree()
  rules = (("norm", 1.0, 0.0), ("encoder", 2.0, 3.0))
  groups = parameter_groups({"groups": rules}, params)
  assert list(groups) == [
    "decoder/classifier/bias",
    "decoder/classifier/kernel",
    "encoder/conv/kernel",
    "encoder/norm/bias",
    "encoder/norm/scale",
  ]
  assert [(g.lr_mult, g.decay_mult) for g in groups.values()] == [(1, 1), (1, 1), (2, 3), (1, 0), (1, 0)]
  assert groups["encoder/conv/kernel"].rule == "encoder"
  assert groups["decoder/classifier/bias"].rule is None


def test_a_zero_rate_freezes():
  config = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "groups": (("^encoder/", 0.0, 1.0),)}
  params = tree()
  tx = make_optimizer(config, params)
  updates, _ = tx.update(tree(), tx.init(params), params)
  assert not any(np.any(u) for u in jax.tree.leaves(updates["encoder"]))
  assert all(np.any(u) for u in jax.tree.leaves(updates["decoder"]))


@pytest.mark.parametrize(
  ("config", "sentence"),
  [
    ({"name": "adamW", "learning_rate": 1.0}, "no optimizer called 'adamW'; did you mean 'adam"),
    ({"name": "sgd", "lr": 1.0}, "optimizer has no key 'lr'"),
    ({"name": "sgd"}, "optimizer has no learning_rate"),
    (
      {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "nesterov": True},
      "nesterov is true with momentum 0",
    ),
    ({"learning_rate": 1.0, "groups": (("norm", 1.0),)}, "holds ('norm', 1.0), expected (regex, lr_mult"),
    ({"learning_rate": 1.0, "groups": (("(", 1.0, 1.0),)}, "holds ('(', 1.0, 1.0), expected (regex, lr_mult"),
  ],
)
def test_bad_optimizers(config, sentence):
  with pytest.raises(ValueError) as error:
    make_optimizer(config, tree())
  assert sentence in str(error.value)


def test_rules_may_match_published_names():
  model = jaxseg.create_model("cgnet_m3n21", num_classes=19)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  init = functools.partial(model.init, train=False)
  params = jax.eval_shape(init, jax.random.key(0), image)["params"]
  rules = (("^decode_head", 10.0, 1.0), (r"\.bn\.", 1.0, 0.0))
  groups = parameter_groups({"groups": rules, "names": "mmseg"}, params)
  classifier = groups["decoder/classifier/kernel"]
  assert (classifier.name, classifier.lr_mult) == ("decode_head.conv_seg.weight", 10.0)
  undecayed = {path for path, group in groups.items() if group.decay_mult == 0}
  assert undecayed
  assert all(path.endswith(("/scale", "/bias")) for path in undecayed)
  with pytest.raises(ValueError, match="there is no layout called 'mmsegg'"):
    parameter_groups({"groups": rules, "names": "mmsegg"}, params)
