"""A config as it would run: every value, and the recipe card. Nothing is trained, no data are opened.

  jaxseg config --config=segnext_ade20k:tiny --config.batch_size=32

With --keys, every key with its type, its range and what it is.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np

from jaxseg import config as config_lib
from jaxseg import data
from jaxseg.config import keys, validate, values
from jaxseg.config.card import recipe_card
from jaxseg.errors import printable
from jaxseg.train.optimizer import frozen_paths, parameter_groups


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--config, --keys."""
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", required=True, help="the experiment")
  parser.add_argument("--keys", action="store_true", help="what each key may hold, instead of the card")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """`--config.key=value` of every value, then the card.

  Raises:
    UserError: a config that cannot run.
  """
  config = config_lib.load(flags.config, overrides=changes)
  validate.validate(config)
  if flags.keys:
    return [_about(config, name) for name in keys.leaves(config)]
  classes = data.dataset_info(config.data).classes
  num_classes = validate.validate_classes(config, classes)
  model = config_lib.build_model(config, num_classes)
  image = np.zeros((1, *config.data.crop_size, config.data.get("channels", 3)), np.float32)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))["params"]
  groups = parameter_groups(config.optimizer, params)
  validate.validate_parameters(config, {path: group.name for path, group in groups.items()})
  card = recipe_card(
    config,
    model=model,
    params=params,
    num_classes=num_classes,
    groups=groups,
    frozen=frozen_paths(params, tuple(config.frozen)),
  )
  lines = [f"--config.{name}={printable(_text(keys.get(config, name)))}" for name in keys.leaves(config)]
  return [*lines, "", card]


def _about(config, name: str) -> str:
  key = keys.key_of(config, name)
  numbers = "" if key.allowed == values.ANY else f", {key.allowed.text()}"
  return f"{name}: {values.describe(key.annotation)}{numbers}; {key.help}"


def _text(value) -> str:
  """As it can be typed again."""
  return value if isinstance(value, str) else repr(value).replace(" ", "")
