"""Trains a segmentation model, or an encoder as an image classifier (configs/pretrain.py).

  jaxseg train --config=cgnet_m3n21_synthetic --workdir=runs/quickstart

The same command on every host of a pod (docs/launch.md), and again to go on after a stop.
`--config=FILE:arg,arg` picks structure (`:smoke` shrinks any config), `--config.key=value`
changes any value of it, and `--config=WORKDIR/config.json` runs the config of an earlier run.
"""

import argparse
from collections.abc import Sequence

from jaxseg import config
from jaxseg.commands.flags import make_parser, parse, split
from jaxseg.config import validate
from jaxseg.console import print_line
from jaxseg.errors import UserError
from jaxseg.train import distributed


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--config, --workdir, and those of a run of several processes."""
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", help="the experiment")
  parser.add_argument("--workdir", metavar="DIR", help="where the run lives, local or gs://")
  distributed.add_job_flags(parser)


def main(argv: Sequence[str], program: str) -> None:
  """Flags, processes, then the library; ends the process as `distributed.exit_on_user_error` does."""
  parser = make_parser(program, __doc__)
  add_flags(parser)
  changes, rest = split(argv)
  with distributed.exit_on_user_error(program):
    flags = parse(parser, rest)
    for name in ("config", "workdir"):
      if getattr(flags, name) is None:
        raise UserError(f"--{name} is missing; {program} --help shows what it takes")
    join = lambda chosen: distributed.initialize(flags, chosen)  # noqa: E731
    chosen = config.load(flags.config, overrides=changes, ready=join)
    validate.validate(chosen)
    from jaxseg.commands import compiled
    from jaxseg.train import experiment, loop  # seconds of imports: a wrong value is said before

    preemption = distributed.Preemption()
    compiled.use_cache(chosen)
    distributed.check_same(program, chosen, workdir=flags.workdir)
    report = loop.train(chosen, flags.workdir, preemption=preemption, end_if_hung=True)
    if report is not None and distributed.is_first_process():
      print_line(f"{experiment.headline(report)} on {chosen.data.eval_split}")
