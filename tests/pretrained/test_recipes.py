"""Ten steps of a published recipe, against PyTorch's losses, statistics and final logits.

Every `train-LAYOUT-MODEL.json` of the reference folder runs: its `hyper` states the recipe, in
the field's words; a word that this reader does not know is an error, not a silence.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.train import create_state, make_loss, make_optimizer, make_step
from tests import parity_cases
from tests.pretrained import parity

CASES = [name for name in parity_cases.CASES if name.startswith("train-")]
# In words for a reader, and said by other fields too.
_PROSE = {"decay_mask", "warmup", "note"}


def _optimizer(hyper: dict[str, Any], layout: str) -> dict[str, Any]:
  """The recipe in our own words: names as published, the first rule that hits decides."""
  betas = hyper.pop("betas", (0.9, 0.999))
  groups = []
  if "head_lr_mult" in hyper:
    groups.append(("head", hyper.pop("head_lr_mult"), 1.0))
  if "backbone_norm_decay_mult" in hyper:
    groups.append(("norm", 1.0, hyper.pop("backbone_norm_decay_mult")))
  schedule = {
    "name": hyper.pop("schedule", "constant"),
    "end_value": hyper.pop("min_lr", 0.0),
    **{
      key: hyper.pop(key) for key in ("power", "total_steps", "warmup_steps", "warmup_ratio") if key in hyper
    },
  }
  return dict(
    name=hyper.pop("optimizer"),
    learning_rate=hyper.pop("lr"),
    weight_decay=hyper.pop("weight_decay", 0.0),
    b1=betas[0],
    b2=betas[1],
    eps=hyper.pop("eps", 1e-8),
    momentum=hyper.pop("momentum", 0.0),
    names=layout,
    groups=tuple(groups),
    schedule=schedule,
  )


def _loss(hyper: dict[str, Any]) -> dict[str, Any]:
  """What the sum is divided by stands in the sentence that describes the loss."""
  sentence = hyper.pop("loss").lower()
  weights = hyper.pop("class_weights", ())
  by = "all" if "all pixels" in sentence else "weights" if weights and "weights" in sentence else "valid"
  aux = hyper.pop("aux_weight", None)
  maps = {"logits": 1.0} | ({} if aux is None else {"aux_logits": aux})
  return dict(name="cross_entropy", normalize_by=by, class_weights=tuple(weights), weights=maps)


def _without_noise(fields: Mapping[str, Any], module: Any) -> dict[str, Any]:
  """A module's fields with every dropout at zero."""
  noisy = [f.name for f in dataclasses.fields(module) if f.name.endswith(("dropout_rate", "drop_path_rate"))]
  return {**fields, **dict.fromkeys(noisy, 0.0)}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_depthwise")
@pytest.mark.parametrize("case", CASES)
def test_ten_steps(tmp_path, case):
  state_dict, images, reference = parity_cases.load(case)
  meta = parity_cases.describe(case)
  np.savez(tmp_path / "x.npz", **state_dict)
  net = jaxseg.from_pretrained(tmp_path / "x.npz")
  parts = [part for part in ("encoder", "decoder", "aux_decoder") if getattr(net.model, part) is not None]
  model = jaxseg.create_model(
    net.arch,
    num_classes=net.fields["num_classes"],
    **{part: _without_noise(net.fields.get(part, {}), getattr(net.model, part)) for part in parts},
  )
  hyper = dict(meta["hyper"])
  tx = make_optimizer(_optimizer(hyper, net.layout), net.variables["params"])
  loss_fn = make_loss(_loss(hyper))
  assert set(hyper) <= _PROSE, f"the recipe says {sorted(set(hyper) - _PROSE)}, which nothing here does"
  state = create_state(model, net.variables, tx)
  step = jax.jit(make_step(loss_fn, tx), donate_argnums=0)

  batch = {"image": images, "label": reference["labels"]}
  losses = []
  for _ in range(meta["steps"]):
    state, scalars = step(state, batch, jax.random.key(0))
    losses.append(float(scalars["loss"]))
  np.testing.assert_allclose(losses, reference["losses"], rtol=1e-3)
  net = dataclasses.replace(net, model=model, variables=state.variables)
  back = jaxseg.to_torch(net)
  statistics = {name.removeprefix("stat:"): v for name, v in reference.items() if name.startswith("stat:")}
  assert statistics
  for name, value in statistics.items():
    assert np.abs(back[name] - value).max() <= 2e-3 * np.abs(value).max(), name

  # In evaluation mode, after the last step.
  final = reference["final_logits"].values
  logits = reference["final_logits"].of(parity.output(net, images)["logits"])
  assert np.abs(logits - final).max() <= 2e-2 * np.abs(final).max()
