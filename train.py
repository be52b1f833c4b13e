"""Trains a segmentation model, or an encoder as an image classifier (configs/pretrain.py).

  python train.py --config=configs/cgnet_m3n21_synthetic.py --workdir=runs/quickstart

The same command on every host of a pod (docs/launch.md), and again to go on after a stop.
`--config=FILE:arg,arg` picks structure (`:smoke` shrinks any config), `--config.key=value`
changes any value of it.
"""

import argparse
import sys

from jaxseg.train import compiled, logging, loop, overrides, runtime, tasks
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
  runtime.add_job_flags(parser)
  changes, rest = overrides.split(argv)
  with runtime.sentences("train.py"):
    runtime.expect_processes("train.py", rest)
    flags = runtime.parse_flags(parser, rest, required=("config", "workdir"))
    config = config_lib.load(flags.config, overrides=changes, ready=runtime.start_processes)
    compiled.use_cache(config)
    runtime.check_processes("train.py", config, workdir=flags.workdir)
    report = loop.train(config, flags.workdir)
    if report is not None and runtime.is_first_process():
      logging.say(f"{tasks.headline(report)} on {config.data.eval_split}")


if __name__ == "__main__":
  main(sys.argv[1:])
