"""Ten steps of the official SegNeXt recipe, against PyTorch's losses, rates, statistics and logits."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.train import create_state, make_loss, make_optimizer, make_step
from tests.pretrained import parity

CASE = "train-mmseg-segnext_tiny"


def _optimizer(hyper):
  """The recipe in our own words: names as published, the first rule that hits decides."""
  return dict(
    name=hyper["optimizer"],
    learning_rate=hyper["lr"],
    weight_decay=hyper["weight_decay"],
    b1=hyper["betas"][0],
    b2=hyper["betas"][1],
    eps=hyper["eps"],
    names="mmseg",
    groups=(("head", hyper["head_lr_mult"], 1.0), ("norm", 1.0, hyper["backbone_norm_decay_mult"])),
    schedule=dict(
      name=hyper["schedule"],
      power=hyper["power"],
      total_steps=hyper["total_steps"],
      warmup_steps=hyper["warmup_steps"],
      warmup_ratio=hyper["warmup_ratio"],
    ),
  )


@pytest.mark.slow
def test_ten_steps(shared, tmp_path):
  state_dict, images, reference = parity.recipe(shared).load(shared / "parity" / CASE)
  meta = json.loads((shared / "parity" / f"{CASE}.json").read_text())
  np.savez(tmp_path / "x.npz", **state_dict)
  net = jaxseg.from_pretrained(tmp_path / "x.npz")
  model = jaxseg.create_model(
    net.arch, num_classes=150, encoder=dict(drop_path_rate=0.0), decoder=dict(dropout_rate=0.0)
  )
  tx = make_optimizer(_optimizer(meta["hyper"]), net.variables["params"])
  loss_fn = make_loss(dict(name="cross_entropy", normalize_by="all"))
  state = create_state(model, net.variables, tx)
  step = jax.jit(make_step(loss_fn, tx), donate_argnums=0)

  batch = {"image": images, "label": reference["labels"]}
  losses = []
  for _ in range(meta["steps"]):
    state, scalars = step(state, batch, jax.random.key(0))
    losses.append(float(scalars["loss"]))
  np.testing.assert_allclose(losses, reference["losses"], rtol=1e-3)
  back = jaxseg.to_torch(dataclasses.replace(net, variables=state.variables))
  statistics = {name.removeprefix("stat:"): v for name, v in reference.items() if name.startswith("stat:")}
  assert statistics
  for name, value in statistics.items():
    assert np.abs(back[name] - value).max() <= 2e-3 * np.abs(value).max(), name

  # In evaluation mode, after the last step.
  net = dataclasses.replace(net, model=model, variables=state.variables)
  final = reference["final_logits"]
  logits = np.asarray(parity.output(net, images)["logits"])
  assert np.abs(logits - final).max() <= 2e-2 * np.abs(final).max()
