"""What a config's data hold: classes, sizes, bad files, and a picture of some examples."""

import argparse
from collections.abc import Sequence

from jaxseg import config as config_lib
from jaxseg import lazy
from jaxseg.commands import outputs
from jaxseg.errors import UserError, printable


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--config, --split, --samples, --output."""
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", required=True, help="whose data")
  parser.add_argument("--split", default="", help="default: config.data.train_split")
  parser.add_argument(
    "--samples", type=int, default=200, help="spread over the split, 0 for all; default: %(default)s"
  )
  parser.add_argument(
    "--output", metavar="DIR", default="runs/check-dataset", help="of the picture; default: %(default)s"
  )


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Lines about a split.

  Raises:
    UserError: a config or a data set that does not work, and bad examples, after they were printed.
  """
  if flags.samples < 0:
    raise UserError(f"--samples is {flags.samples}; expected 0 for all, or a positive number")
  config = config_lib.load(flags.config, overrides=changes)
  outputs.try_folder(flags.output)
  report = lazy.load("jaxseg.data.check").report
  split = flags.split or config.data.train_split
  return [printable(line) for line in report(config.data, split, samples=flags.samples, output=flags.output)]
