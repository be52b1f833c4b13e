"""Trains a segmentation model, or an encoder as an image classifier (configs/pretrain.py).

  python train.py --config=configs/cgnet_m3n21_synthetic.py --workdir=runs/quickstart

The same command on every host of a pod (docs/launch.md), and again to go on after a stop.
`--config=FILE:arg,arg` picks structure (`:smoke` shrinks any config), `--config.key=value`
changes any value of it.
"""

import argparse
import sys

from jaxseg import console

if __name__ == "__main__":
  console.exit_at_interrupt("train.py")  # before the imports, which take seconds

from jaxseg.train import compiled, distributed, loop, overrides, tasks
from jaxseg.train import config as config_lib


def main(argv: list[str]) -> None:
  """Flags, processes, then the library."""
  parser = argparse.ArgumentParser(
    prog="train.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", help="the experiment")
  parser.add_argument("--workdir", metavar="DIR", help="where the run lives, local or gs://")
  distributed.add_job_flags(parser)
  changes, rest = overrides.split(argv)
  with distributed.exit_on_user_error("train.py"):
    flags = console.parse_flags(parser, rest, required=("config", "workdir"))
    join = lambda config: distributed.initialize(flags, config)  # noqa: E731
    config = config_lib.load(flags.config, overrides=changes, ready=join)
    preemption = distributed.Preemption()
    compiled.use_cache(config)
    distributed.check_same("train.py", config, workdir=flags.workdir)
    report = loop.train(config, flags.workdir, preemption=preemption, end_if_hung=True)
    if report is not None and distributed.is_first_process():
      console.print_line(f"{tasks.headline(report)} on {config.data.eval_split}")


if __name__ == "__main__":
  main(sys.argv[1:])
