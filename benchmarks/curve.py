r"""Draws a run's curve: training loss, and val mIoU where it was evaluated.

python benchmarks/curve.py --workdir=runs/camvid --output=benchmarks/results/cgnet_camvid_cpu.png \
    --reference=250:.37,500:.52
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def main() -> None:
  """One picture from one metrics.jsonl."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--output", required=True)
  parser.add_argument("--reference", default="", help="STEP:MIOU,... of another implementation")
  parser.add_argument("--title", default="")
  flags = parser.parse_args()
  lines = [json.loads(line) for line in (flags.workdir / "metrics.jsonl").read_text().splitlines()]
  steps, losses = np.array([(line["step"], line["loss"]) for line in lines if "loss" in line]).T
  scores = np.array([(line["step"], line["mIoU"]) for line in lines if "mIoU" in line]).T

  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
  left.plot(steps, losses, color="0.8", linewidth=0.8)
  window = min(25, len(losses))
  smooth = np.convolve(losses, np.ones(window) / window, "valid")
  left.plot(steps[window - 1 :], smooth, color="C0", label=f"mean of {window} steps")
  left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
  left.legend(frameon=False)
  right.plot(*scores, "o-", color="C0", label="jaxseg")
  if flags.reference:
    theirs = [tuple(map(float, pair.split(":"))) for pair in flags.reference.split(",")]
    right.plot(*zip(*theirs, strict=True), "s--", color="C1", label="reference")
  for step, score in scores.T:
    right.annotate(f"{score:.3f}", (step, score), textcoords="offset points", xytext=(0, 7), ha="center")
  right.set(xlabel="step", ylabel="val mIoU", ylim=(0, 0.7))
  right.margins(x=0.12)
  right.legend(frameon=False, loc="lower right")
  figure.suptitle(flags.title)
  figure.savefig(flags.output, dpi=120)


if __name__ == "__main__":
  main()
