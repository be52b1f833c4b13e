r"""Training crops per second of the whole feed, and what a step waits for: worker processes against threads.

  python benchmarks/workers.py --pictures=DIR --masks=DIR [--size=1024x2048] [--step_ms=200]

The same batches (8 crops of 512x512, scaled to fit 2048x512 times U(0.5, 2)) are made

- by two threads in this process, each an example at a time, stacked here with labels of int32: what jaxseg
  did before it had worker processes, built again from Grain;
- in this process without threads;
- by 1 and by 2 worker processes, as `train_batches` makes them.

They run in turn, a chunk each; all are read by a loop that sleeps `--step_ms` as a device would work, and by
one that does not. What is printed for each: crops/s of wall time of the second, milliseconds a step waited in
the first; medians over the rounds, with least and most. `--size` enlarges the pictures first (Cityscapes is
1024x2048, ADE20K about 512x683).
"""

import argparse
import os
import pathlib
import shutil
import statistics
import tempfile
import time
import types
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"

import cv2
import grain
import numpy as np

from jaxseg import data
from jaxseg.data import pipeline, transforms
from jaxseg.data.transforms import MEAN_FILL, make_rule

BATCH = 8
_BUFFERED = 8  # batches; more than any of the feeds keeps ready
GEOMETRY = dict(
  crop_size=(512, 512),
  resize=(2048, 512),
  scale_range=(0.5, 2.0),
  scale_step=0.0,
  cat_max_ratio=0.75,
  flip=0.5,
)


def main() -> None:
  """A line a round, then the medians."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--pictures", required=True, type=pathlib.Path)
  parser.add_argument("--masks", required=True, type=pathlib.Path)
  parser.add_argument("--size", default="", help="rows x columns; default: as they are")
  parser.add_argument("--batches", type=int, default=24, help="a chunk")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--step_ms", type=float, default=200.0)
  flags = parser.parse_args()
  root = pathlib.Path(tempfile.mkdtemp())
  try:
    measure(write(root, flags), flags)
  finally:
    shutil.rmtree(root)


def write(root: pathlib.Path, flags: argparse.Namespace) -> types.SimpleNamespace:
  """`config.data` of the pictures as a folder, enlarged where that is asked for."""
  size = tuple(map(int, flags.size.split("x"))) if flags.size else None
  for folder in ("images/train", "masks/train"):
    (root / folder).mkdir(parents=True)
  for path in sorted(flags.pictures.iterdir()):
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
      continue
    image = cv2.imread(str(path))
    mask = cv2.imread(str(flags.masks / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
    if size:
      image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
      mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
    suffix = ".png" if path.suffix.lower() == ".png" else ".jpg"
    cv2.imwrite(str(root / f"images/train/{path.stem}{suffix}"), image)
    cv2.imwrite(str(root / f"masks/train/{path.stem}.png"), mask)
  return types.SimpleNamespace(
    name="folder",
    manual_dir=str(root),
    data_dir=str(root / "prepared"),
    train_split="train",
    classes=tuple(f"class {i}" for i in range(255)),
    label_map=(),
    pad="after_flip",
    workers=0,
    **GEOMETRY,
  )


def measure(settings: types.SimpleNamespace, flags: argparse.Namespace) -> None:
  """Runs the feeds in turn and prints."""
  source = data.open_split(settings, "train")
  feeds = {"two threads": two_threads(source)}
  for workers in (0, 1, 2):
    settings.workers = workers
    feeds[f"{workers} worker processes" if workers else "in process"] = data.train_batches(
      settings, batch_size=BATCH, seed=0, start_step=0, source=source
    )
  rates, waits = {name: [] for name in feeds}, {name: [] for name in feeds}
  for index in range(-1, flags.rounds):  # round -1 warms up
    for name, feed in feeds.items():
      chunk(feed, _BUFFERED, 0.0)  # what was made while the others had their turn
      rate, _ = chunk(feed, flags.batches, 0.0)
      _, wait = chunk(feed, flags.batches, flags.step_ms / 1e3)
      if index >= 0:
        rates[name].append(rate)
        waits[name].append(wait)
    if index >= 0:
      print(f"round {index + 1}: " + ", ".join(f"{n} {r[-1]:.1f}/s" for n, r in rates.items()), flush=True)
  for name in feeds:
    r, w = rates[name], waits[name]
    print(
      f"{name}: {statistics.median(r):.1f} crops/s ({min(r):.1f} to {max(r):.1f}); a step of"
      f" {flags.step_ms:.0f} ms waits {statistics.median(w):.0f} ms"
      f" ({min(w):.0f} to {max(w):.0f})"
    )
  base = rates["two threads"]
  for name, values in rates.items():
    ratios = [a / b for a, b in zip(values, base, strict=True)]
    print(f"{name} / two threads: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def chunk(feed: Iterator, count: int, step: float) -> tuple[float, float]:
  """(crops a second, milliseconds waited a step) of `count` batches, `step` seconds of work after each."""
  waited, start = 0.0, time.perf_counter()
  for _ in range(count):
    before = time.perf_counter()
    next(feed)
    waited += time.perf_counter() - before
    time.sleep(step)
  return count * BATCH / (time.perf_counter() - start), waited / count * 1e3


class Crops:
  """Crop after crop, as the threads of before made them: the whole picture is resized."""

  def __init__(self, source):
    self._source, self._rule = source, make_rule(**GEOMETRY)

  def __len__(self):
    return 1 << 40

  def __getitem__(self, index):
    example = self._source[index % len(self._source)]
    rng = np.random.default_rng((0, 0, index))
    image, label = example["image"], example["label"]
    geometry = transforms.draw_geometry(rng, label.shape, self._rule, label=label)
    image, label = transforms.apply_geometry(
      image, label, geometry, fill=MEAN_FILL, crop_size=self._rule.crop_size
    )
    return {"image": image, "label": label, "id": example["id"]}


def two_threads(source) -> Iterator:
  """The feed of before: two threads make examples, the reader stacks them."""
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * BATCH)

  def stack(examples):
    batch = pipeline.stack(examples)
    return {**batch, "label": batch["label"].astype(np.int32)}

  return iter(grain.MapDataset.source(Crops(source)).to_iter_dataset(options).batch(BATCH, batch_fn=stack))


if __name__ == "__main__":
  main()
