"""The configs of mmsegmentation's recipes, against what mmsegmentation's own configs come to."""

import functools
import json

import jax
import numpy as np

from jaxseg import config as config_lib
from jaxseg import data
from jaxseg.train import make_schedule, parameter_groups
from tests import parity_cases
from tests.configs.test_configs import load

# The recipe's model → our config of it.
OURS = {
  "deeplabv3plus_resnet50": "deeplab_mmseg:v3plus,long",
  "segformer_b0": "segformer_ade20k:mmseg",
  "segnext_tiny": "segnext_ade20k:mmseg",
}


def test_rates_and_decays_of_every_parameter():
  files = sorted((parity_cases.FOLDER / "recipes").glob("mmseg1-*.json"))
  assert {path.stem.removeprefix("mmseg1-") for path in files} == set(OURS)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  for path in files:
    recipe = json.loads(path.read_text())
    config = load(OURS[recipe["model"]])
    model = config_lib.build_model(config, data.dataset_info(config.data).num_classes)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), image)["params"]
    optimizer = config.optimizer.copy_and_resolve_references()
    # The names do not depend on how the config matches them.
    names = {**optimizer.to_dict(), "names": "mmseg"}
    groups = parameter_groups(optimizer, params)
    for where, named in parameter_groups(names, params).items():
      expected = recipe["parameters"][named.name]
      ours = (groups[where].lr_mult, optimizer.weight_decay * groups[where].decay_mult)
      assert ours == (expected["lr_mult"], expected["weight_decay"]), (recipe["model"], named.name)
    assert optimizer.name == recipe["optimizer"]["type"].lower()
    assert config.total_steps == recipe["total_steps"]
    rates = {int(step): rate for step, rate in recipe["lr_of_a_parameter_with_lr_mult_1"].items()}
    rate = make_schedule(optimizer.schedule, optimizer.learning_rate)
    ours = np.asarray(jax.vmap(rate)(np.asarray(list(rates), np.int32)), np.float64)
    np.testing.assert_allclose(ours, list(rates.values()), rtol=2e-6, atol=1e-17)


def test_the_official_recipes_warm_up_as_old_mmcv_does():
  for name in ("segnext_ade20k", "segformer_ade20k"):
    optimizer = load(name).optimizer.copy_and_resolve_references()
    rate = make_schedule(optimizer.schedule, optimizer.learning_rate)
    at = np.asarray(jax.vmap(rate)(np.asarray([0, 750, 1500, 80_000, 159_999], np.int32)), np.float64)
    half = 6e-5 * (1 - 750 / 160_000) * (1 - (1 - 750 / 1500) * (1 - 1e-6))
    expected = [6e-11, half, 6e-5 * (1 - 1500 / 160_000), 3e-5, 6e-5 / 160_000]
    np.testing.assert_allclose(at, expected, rtol=2e-6)
