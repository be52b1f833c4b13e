"""Writes a config's data as training reads them; train.py does the same by itself, in one process."""

import argparse
from collections.abc import Sequence

from jaxseg import config as config_lib
from jaxseg import data


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--config, --beam_runner, --beam_options."""
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", required=True, help="whose data")
  parser.add_argument(
    "--beam_runner", default="", metavar="NAME", help="through Apache Beam: DirectRunner, DataflowRunner, ..."
  )
  parser.add_argument(
    "--beam_options", default="", metavar='"--A=B --C=D"', help="Beam's own flags, in quotes, after a ="
  )


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Prepares, and says so.

  Raises:
    UserError: a config or a data set that does not work.
  """
  config = config_lib.load(flags.config, overrides=changes)
  data.prepare(config.data, beam_runner=flags.beam_runner, beam_options=flags.beam_options.split())
  return [f"{config.data.name} is prepared"]
