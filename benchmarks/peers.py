r"""Ours against PyTorch on this machine: the two in turn, and their ratio pair by pair.

  python benchmarks/peers.py --peers=../shared/peers --peer-python=peers/bin/python \
    --train --size=256x256 --batch=8 --rounds=5 cgnet_m3n21

The peers are mmsegmentation's PyTorch models; the README in their folder says how to set up the
environment whose interpreter `--peer-python` names. Each measurement is a process of its own (two
thread pools in one process disturb each other), ours and theirs in turn, so that a machine that
speeds up or slows down does so for both. Ours is built as mmsegmentation's variant of the model.
The peers' training step ends with the gradients; ours goes on to the optimizer's update.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys

STEP = pathlib.Path(__file__).resolve().parent / "step.py"


def main() -> None:
  """A line a round, then the medians."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("models", nargs="+")
  parser.add_argument("--peers", required=True, type=pathlib.Path, help="folder with refbench.py")
  parser.add_argument("--peer-python", required=True, help="interpreter with PyTorch and mmsegmentation")
  parser.add_argument("--size", default="256x256")
  parser.add_argument("--batch", default="8")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--train", action="store_true")
  flags = parser.parse_args()
  train = ["--train"] * flags.train
  for name in flags.models:
    ratios = []
    for _ in range(flags.rounds):
      ours = milliseconds(
        [sys.executable, str(STEP), *train, "--mmseg", f"--size={flags.size}", f"--batch={flags.batch}", name]
      )
      theirs = milliseconds(
        [flags.peer_python, "refbench.py", *train, flags.size, flags.batch, name], folder=flags.peers
      )
      ratios.append(ours / theirs)
      print(f"{name}: ours {ours:.0f} ms, PyTorch {theirs:.0f} ms, ratio {ratios[-1]:.2f}", flush=True)
    print(
      f"{name} {flags.size} batch {flags.batch} {'train' if flags.train else 'infer'}:"
      f" ratio median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
      f" in {flags.rounds} rounds",
      flush=True,
    )


def milliseconds(command: list[str], *, folder: pathlib.Path | None = None) -> float:
  """The median that the command prints."""
  if folder is not None:
    command = [str(pathlib.Path(command[0]).absolute()), *command[1:]]
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
  found = re.search(r"median ([\d.]+) ms", done.stdout)
  if found is None:
    sys.exit(f"{' '.join(command)} printed no time:\n{done.stdout}{done.stderr}")
  return float(found[1])


if __name__ == "__main__":
  main()
