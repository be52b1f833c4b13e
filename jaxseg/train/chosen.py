"""What eval.py and `jaxseg crf-search` are asked to look at: flags → a config and a trained network."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np

from jaxseg.crf import Settings
from jaxseg.errors import UserError
from jaxseg.train import config as config_lib
from jaxseg.train import evaluating, workdir
from jaxseg.train.evaluating import Subject

_TRACED = (64, 64)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--workdir, --source, --config, --split, --step and --output."""
  parser.add_argument("--workdir", metavar="DIR", help="a run of train.py")
  parser.add_argument("--source", metavar="FILE", help="weights, instead of a workdir")
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", help="the data, where it is not the workdir's")
  parser.add_argument("--split", help="default: config.data.eval_split")
  parser.add_argument("--step", default="best", help="checkpoint of the workdir: best, latest or a number")
  parser.add_argument(
    "--output", metavar="DIR", help="default: a folder in WORKDIR, or in runs for a --source"
  )


def choose_config(
  flags: argparse.Namespace,
  changes: Sequence[tuple[str, str]],
  *,
  ready: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> ml_collections.ConfigDict:
  """The config that the flags mean, with `changes` (`overrides.split`) applied; a workdir as --source is one.

  `ready` is called with it before any weights are read, as in `config.load`.

  Raises:
    UserError: neither or both of --workdir and --source, no config, a wrong change, or one of a model that
      is not the config's.
  """
  if (flags.workdir is None) == (flags.source is None):
    raise UserError("give either --workdir=DIR or --source=FILE")
  if flags.source and workdir.is_workdir(flags.source):
    flags.workdir, flags.source = flags.source, None
  if flags.config:
    config = config_lib.load(flags.config, overrides=changes, ready=ready)
  elif flags.workdir:
    config = workdir.read_config(flags.workdir)
  else:
    raise UserError("--source needs --config=FILE, which says on what data to evaluate")
  if "crf" not in config.eval:  # a run from before there was one
    with config.unlocked():
      config.eval.crf = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
  if (flags.config or flags.source) and any(key.startswith("model.") for key, _ in changes):
    raise UserError(
      "config.model is not the model that is evaluated, so that changing it has no effect;"
      " give --workdir alone to evaluate its model with changed fields"
    )
  if not flags.config:
    config_lib.change(config, changes)
    if ready is not None:
      ready(config)
  if flags.split:
    config.data.eval_split = flags.split
  return config


def load_subject(flags: argparse.Namespace, config: ml_collections.ConfigDict) -> Subject:
  """The network that the flags mean; a workdir's with the fields of `config.model`, where that is its own.

  Raises:
    UserError: it cannot be read, or a changed field does not fit the parameters.
  """
  if not flags.workdir:
    return evaluating.from_source(flags.source)
  subject = evaluating.from_workdir(flags.workdir, step=flags.step)
  if flags.config:
    return subject
  model = config_lib.build_model(config, subject.num_classes)
  image = jax.ShapeDtypeStruct((1, *_TRACED, 3), np.float32)
  wanted = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)["params"]
  shapes = lambda tree: {  # noqa: E731
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  differ = sorted(path for path, _ in shapes(wanted).items() ^ shapes(subject.variables["params"]).items())
  if differ:
    raise UserError(
      f"config.model as changed does not fit the parameters of {flags.workdir}: {', '.join(differ[:3])};"
      " only fields without parameters, such as an output stride, can be changed after training"
    )
  return dataclasses.replace(subject, model=model)


def crf_settings(config: ml_collections.ConfigDict) -> Settings:
  """The CRF of `config.eval.crf`.

  Raises:
    UserError: a value that cannot be, with its key.
  """
  try:
    return Settings(**config.eval.crf)
  except ValueError as error:
    raise UserError(f"config.eval.crf.{error}") from None
