"""How long the host takes for parts of a training example, each by two forms that alternate in one run.

  python benchmarks/host.py [--rounds=30]

Drawn scenes of the sizes of ADE20K and Cityscapes stand for pictures. Prints the median CPU time of each form
in milliseconds of this machine, which others on it disturb little, and their ratio.
"""

import argparse
import functools
import statistics
import time

import cv2
import numpy as np

from jaxseg.data import images, packed
from jaxseg.data.synthetic import draw_scene
from jaxseg.data.transforms import apply_geometry, draw_geometry, make_rule

SIZES = {"ADE20K": (512, 683), "Cityscapes": (1024, 2048)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=30)
  rounds = parser.parse_args().rounds
  cv2.setNumThreads(1)
  print("| part | before | after | ratio | bytes |\n|---|---|---|---|---|")
  for name, size in SIZES.items():
    measure(name, *draw_scene(0, 0, 0, size=size, num_classes=19), rounds)


def measure(name: str, image: np.ndarray, label: np.ndarray, rounds: int) -> None:
  """The lines of one size."""
  table = np.arange(2**16).astype(np.uint8)
  png, ids = images.encode_mask(label), packed.pack(label)

  def read(data):
    return images.train_ids(images.decode_mask(data), table)

  assert np.array_equal(read(png), read(ids))
  row(f"mask of {name}: PNG, packed", lambda: read(png), lambda: read(ids), rounds, len(png), len(ids))
  for scale in (0.5, 2.0):
    rule = make_rule(crop_size=(512, 512), scale_range=(scale, scale), scale_step=0.0, flip=0.5)
    geometry = draw_geometry(np.random.default_rng(0), label.shape, rule, label=label)
    crop = functools.partial(apply_geometry, image, label, geometry, crop_size=(512, 512))
    exact, near = (functools.partial(crop, exact=exact) for exact in (True, False))
    row(f"crop of {name} at scale {scale:g}: of the whole, alone", exact, near, rounds)


def row(name, before, after, rounds, *sizes) -> None:
  """A line of the table; the two forms take turns."""
  times = [[], []]
  for _ in range(rounds):
    for form, taken in zip((before, after), times, strict=True):
      start = time.thread_time()
      form()
      taken.append(time.thread_time() - start)
  old, new = (1e3 * statistics.median(taken) for taken in times)
  size = f"{sizes[0]:,} → {sizes[1]:,}" if sizes else ""
  print(f"| {name} | {old:.2f} ms | {new:.2f} ms | {old / new:.1f} | {size} |", flush=True)


if __name__ == "__main__":
  main()
