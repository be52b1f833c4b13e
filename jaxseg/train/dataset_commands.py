"""`jaxseg check-dataset` and `jaxseg prepare-dataset`: the data of a config, before any training."""

import argparse
from collections.abc import Sequence

from jaxseg import data, lazy
from jaxseg.train import config as config_lib


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of `jaxseg check-dataset`."""
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", required=True, help="whose data")
  parser.add_argument("--split", default="", help="default: config.data.train_split")
  parser.add_argument(
    "--samples", type=int, default=200, help="spread over the split, 0 for all; default: %(default)s"
  )
  parser.add_argument(
    "--output", metavar="DIR", default="runs/check-dataset", help="of the picture; default: %(default)s"
  )


def check(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Runs `jaxseg check-dataset`; `changes` are the `--config.key=value` that came with the flags.

  Raises:
    UserError: a config or a data set that does not work, and bad examples, after they were printed.
  """
  config = config_lib.load(flags.config, overrides=changes)
  report = lazy.load("jaxseg.data.check").report
  split = flags.split or config.data.train_split
  return report(config.data, split, samples=flags.samples, output=flags.output)


def add_prepare_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of `jaxseg prepare-dataset`."""
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", required=True, help="whose data")
  parser.add_argument(
    "--beam_runner", default="", metavar="NAME", help="through Apache Beam: DirectRunner, DataflowRunner, ..."
  )
  parser.add_argument(
    "--beam_options", default="", metavar='"--A=B --C=D"', help="Beam's own flags, in quotes, after a ="
  )


def prepare(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Runs `jaxseg prepare-dataset`; train.py does the same by itself, in one process.

  Raises:
    UserError: a config or a data set that does not work.
  """
  config = config_lib.load(flags.config, overrides=changes)
  data.prepare(config.data, beam_runner=flags.beam_runner, beam_options=flags.beam_options.split())
  return [f"{config.data.name} is prepared"]
