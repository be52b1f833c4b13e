"""Rate and decay of every parameter against the recipes that mmsegmentation's own configs come to."""

import functools
import json

import jax
import numpy as np

from jaxseg import models
from jaxseg.pretrained import layouts_of
from jaxseg.train import make_schedule, parameter_groups
from tests import parity_cases

# mmcv's custom_keys of the SegFormer and SegNeXt configs, longest first, first hit wins.
CUSTOM_KEYS = (("pos_block", 1.0, 0.0), ("head", 10.0, 1.0), ("norm", 1.0, 0.0))


def recipes():
  files = sorted((parity_cases.FOLDER / "recipes").glob("mmseg1-*.json"))
  assert files
  return [json.loads(path.read_text()) for path in files]


def settings(recipe):
  """`config.optimizer` of a recipe: what its configs say, in our words."""
  transformer = recipe["optimizer"]["type"] == "AdamW"
  return {
    "name": recipe["optimizer"]["type"].lower(),
    "learning_rate": recipe["optimizer"]["lr"],
    "weight_decay": recipe["optimizer"]["weight_decay"],
    "names": "mmseg",
    "groups": CUSTOM_KEYS if transformer else (),
    "schedule": {
      "name": "poly",
      "power": 1.0 if transformer else 0.9,
      "end_value": 0.0 if transformer else 1e-4,
      "total_steps": recipe["total_steps"],
      "warmup": "mmengine",
      "warmup_steps": recipe["warmup_steps"],
      "warmup_ratio": 1e-6,
    },
  }


def parameters(recipe):
  """The parameters of mmsegmentation's form of the model, as its names and shapes tell it."""
  told = layouts_of(recipe["model"])["mmseg"].detect(
    {name: tuple(entry["shape"]) for name, entry in recipe["parameters"].items()}
  )
  parts = {"encoder": told.encoder, "decoder": told.decoder, "aux_decoder": told.aux_decoder}
  model = models.create_model(
    told.arch, num_classes=told.num_classes, **{key: fields for key, fields in parts.items() if fields}
  )
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)["params"]


def test_every_parameter_has_its_rate_and_decay():
  for recipe in recipes():
    config = settings(recipe)
    groups = parameter_groups(config, parameters(recipe)).values()
    # Some published tensors hold several of ours (packed projections).
    assert {group.name for group in groups} == set(recipe["parameters"]), recipe["model"]
    for group in groups:
      expected = recipe["parameters"][group.name]
      ours = (group.lr_mult, config["weight_decay"] * group.decay_mult)
      assert ours == (expected["lr_mult"], expected["weight_decay"]), (recipe["model"], group.name)


def test_learning_rates_are_those_of_mmengine():
  for recipe in recipes():
    config = settings(recipe)
    expected = {int(step): rate for step, rate in recipe["lr_of_a_parameter_with_lr_mult_1"].items()}
    rate = make_schedule(config["schedule"], config["learning_rate"])
    ours = np.asarray(jax.vmap(rate)(np.asarray(list(expected), np.int32)), np.float64)
    np.testing.assert_allclose(ours, list(expected.values()), rtol=2e-6, atol=1e-17)
