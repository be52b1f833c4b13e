r"""The quickstart: CGNet on drawn scenes, beside a model that sees only colour and the majority class.

  python benchmarks/quickstart.py --workdir=runs/quickstart

Trains both for the same steps on the same data, and evaluates both on scenes that neither has
seen. Writes runs/quickstart/panel.png (image | label | prediction). The last line is CGNet's mIoU.
"""

import argparse
import pathlib
import shutil
import time

import numpy as np

from jaxseg import config as config_lib
from jaxseg.commands import evaluate, target
from jaxseg.config import record
from jaxseg.evaluation.report import Report
from jaxseg.train import distributed, loop

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
  """Two runs, three lines."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", default="runs/quickstart", help="default: %(default)s")
  folder = pathlib.Path(parser.parse_args().workdir)
  with distributed.exit_on_user_error("quickstart"):
    colour = run("colour_only_synthetic.py", folder / "colour_only")
    cgnet = run("cgnet_m3n21_synthetic.py", folder / "cgnet")
  shutil.copy(folder / "cgnet" / "eval" / "panel.png", folder / "panel.png")
  print(
    f"\nOn {int(cgnet.matrix.sum()):,} pixels of scenes that training never saw ({folder / 'panel.png'}):"
  )
  print(f"majority class: mIoU {majority(cgnet).miou:.2f}")
  print(f"1x1 convolutions (colour only), same steps: mIoU {colour.miou:.2f}")
  print("CGNet:")
  print(f"mIoU {cgnet.miou:.2f}")


def run(config_file: str, directory: pathlib.Path) -> Report:
  """Trains (or goes on training) and evaluates the last checkpoint from its files."""
  began = time.perf_counter()
  config = config_lib.load(str(CONFIGS / config_file))
  loop.train(config, directory)
  subject = target.from_workdir(directory, step="latest")
  report = evaluate.evaluate(subject, record.read_config(directory), output=directory / "eval")
  print(f"{config.model.arch}: {time.perf_counter() - began:.0f} s in all", flush=True)
  return report


def majority(report: Report) -> Report:
  """The report of a model that says the commonest class everywhere."""
  truth = report.matrix.sum(1)
  matrix = np.zeros_like(report.matrix)
  matrix[:, np.argmax(truth)] = truth
  return Report(matrix)


if __name__ == "__main__":
  main()
