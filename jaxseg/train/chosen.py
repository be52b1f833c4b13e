"""What eval.py and `jaxseg crf-search` are asked to look at: flags → a config and a trained network."""

import argparse
import dataclasses
from collections.abc import Sequence

import ml_collections

from jaxseg.crf import Settings
from jaxseg.train import config as config_lib
from jaxseg.train import evaluating, overrides, workdir
from jaxseg.train.evaluating import Subject
from jaxseg.train.overrides import ConfigError


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


def choose_config(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> ml_collections.ConfigDict:
  """The config that the flags mean, with `changes` (`overrides.split`) applied; a workdir as --source is one.

  Raises:
    ConfigError: neither or both of --workdir and --source, no config, a wrong change.
  """
  if (flags.workdir is None) == (flags.source is None):
    raise ConfigError("give either --workdir=DIR or --source=FILE")
  if flags.source and workdir.is_workdir(flags.source):
    flags.workdir, flags.source = flags.source, None
  if flags.config:
    config = config_lib.load(flags.config)
  elif flags.workdir:
    config = workdir.read_config(flags.workdir)
  else:
    raise ConfigError("--source needs --config=FILE, which says on what data to evaluate")
  if "crf" not in config.eval:  # a run from before there was one
    with config.unlocked():
      config.eval.crf = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
  overrides.apply(config, changes)
  if flags.split:
    config.data.eval_split = flags.split
  return config


def load_subject(flags: argparse.Namespace) -> Subject:
  """The network that the flags mean.

  Raises:
    ValueError: it cannot be read.
  """
  if flags.workdir:
    return evaluating.from_workdir(flags.workdir, step=flags.step)
  return evaluating.from_source(flags.source)


def crf_settings(config: ml_collections.ConfigDict) -> Settings:
  """The CRF of `config.eval.crf`.

  Raises:
    ConfigError: a value that cannot be, with its key.
  """
  try:
    return Settings(**config.eval.crf)
  except ValueError as error:
    raise ConfigError(f"config.eval.crf.{error}") from None
