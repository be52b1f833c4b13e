"""Evaluates a trained model: exact mIoU, a table by class, report.json and a picture.

  python eval.py --workdir=runs/quickstart [--split=val] [--step=best]
  python eval.py --source=model.safetensors --config=configs/cgnet_m3n21_camvid.py

The first form evaluates a run of train.py on its own data (or on that of `--config`), the second
any weights that `jaxseg.from_pretrained` reads. `--config.key=value` changes a value of the config.
`--crf` puts the fully-connected CRF of `config.eval.crf` behind the network, and so does any
`--config.eval.crf.key=value`; the report then has the scores of both.
Of an image classifier (configs/pretrain.py) the scores are top-1 and top-5.
"""

import argparse
import sys

from jaxseg import console
from jaxseg.train import chosen, compiled, distributed, evaluating, overrides


def main(argv: list[str]) -> None:
  """Flags, processes, then the library."""
  parser = argparse.ArgumentParser(
    prog="eval.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  chosen.add_flags(parser)
  parser.add_argument("--crf", action="store_true", help="refine the result by config.eval.crf")
  distributed.add_job_flags(parser)
  changes, rest = overrides.split(argv)
  with distributed.exit_on_user_error("eval.py"):
    flags = console.parse_flags(parser, rest)
    join = lambda config: distributed.initialize(flags, config)  # noqa: E731
    config = chosen.choose_config(flags, changes, ready=join)
    compiled.use_cache(config)
    refine = flags.crf or any(key.startswith("eval.crf.") for key, _ in changes)
    crf = chosen.crf_settings(config) if refine else None
    output = flags.output or (f"{flags.workdir}/eval" if flags.workdir else "runs/eval")
    distributed.check_same(
      "eval.py", config, source=flags.workdir or flags.source, step=flags.step, crf=refine
    )
    evaluating.run(chosen.load_subject(flags, config), config, output=output, crf=crf)


if __name__ == "__main__":
  main(sys.argv[1:])
