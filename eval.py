"""Evaluates a trained model: exact mIoU, a table by class, report.json and a picture.

  python eval.py --workdir=runs/quickstart [--split=val] [--step=best]
  python eval.py --source=model.safetensors --config=configs/cgnet_m3n21_camvid.py

The first form evaluates a run of train.py on its own data (or on that of `--config`), the second
any weights that `jaxseg.from_pretrained` reads. `--config.key=value` changes a value of the config.
"""

import argparse
import sys

from jaxseg.train import config as config_lib
from jaxseg.train import evaluating, overrides, runtime, workdir


def main(argv: list[str]) -> None:
  """Flags, processes, then the library."""
  parser = argparse.ArgumentParser(
    prog="eval.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--workdir", metavar="DIR", help="a run of train.py")
  parser.add_argument("--source", metavar="FILE", help="weights, instead of a workdir")
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", help="the data, where it is not the workdir's")
  parser.add_argument("--split", help="default: config.data.eval_split")
  parser.add_argument("--step", default="best", help="checkpoint of the workdir: best, latest or a number")
  parser.add_argument("--output", metavar="DIR", help="default: WORKDIR/eval, or runs/eval for a --source")
  changes, rest = overrides.split(argv)
  with runtime.sentences("eval.py"):
    flags = runtime.parse_flags(parser, rest)
    if (flags.workdir is None) == (flags.source is None):
      raise overrides.ConfigError("give either --workdir=DIR or --source=FILE")
    if flags.source and workdir.is_workdir(flags.source):
      flags.workdir, flags.source = flags.source, None
    if flags.config:
      config = config_lib.load(flags.config, overrides=changes)
    elif flags.workdir:
      config = workdir.read_config(flags.workdir)
      overrides.apply(config, changes)
    else:
      raise overrides.ConfigError("--source needs --config=FILE, which says on what data to evaluate")
    if flags.split:
      config.data.eval_split = flags.split
    runtime.start_processes()
    if flags.workdir:
      subject = evaluating.from_workdir(flags.workdir, step=flags.step)
    else:
      subject = evaluating.from_source(flags.source)
    evaluating.run(
      subject, config, output=flags.output or (f"{flags.workdir}/eval" if flags.workdir else "runs/eval")
    )


if __name__ == "__main__":
  main(sys.argv[1:])
