r"""Training crops per second of one core: our host pipeline against one written as mmsegmentation's is.

  python benchmarks/pipeline.py --pictures=../shared/data/camvid/train \
    --masks=../shared/data/camvid/trainannot

Both take the same encoded pictures from memory and the same draws, so that they make the same crops,
which is checked first: decode, scale to fit 2048x512 times U(0.5, 2), crop 512x512 with no class at 75 %
or more, flip, photometric distortion, and eight crops stacked. The other one does it in mmsegmentation's
order: OpenCV resizes picture and label, both are cropped (np.unique counts the classes), NumPy and OpenCV
change colours. In training our colours are changed on the device, so ours is given without them (what a
host that feeds an accelerator does) and with the device's own code compiled for this core; the other one
with its distortion, without it, and without counting classes. `train_batches` is
`jaxseg.data.train_batches` itself, which also reads records from disk and maps ids.

They run in turn, a chunk each, on one core with one thread. Seconds are of processor time, which other
work on the machine disturbs least.
"""

import argparse
import atexit
import io
import itertools
import os
import pathlib
import shutil
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Iterator

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import cv2
import jax
import numpy as np
from PIL import Image

from jaxseg.data import color, train_batches
from jaxseg.data.images import decode_image, decode_mask
from jaxseg.data.transforms import GeometryRule, apply_geometry, draw_geometry, fit_size

CROP = 512
BASE = (2048, 512)
SCALES = (0.5, 2.0)
CAT_MAX_RATIO = 0.75
BATCH = 8  # crops that the device distorts at once
Pair = tuple[bytes, bytes]
OURS, OTHER = "ours, colours left to the device", "other"


def main() -> None:
  """A line a round, then the medians."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--pictures", required=True, type=pathlib.Path, help="folder of JPEG or PNG pictures")
  parser.add_argument(
    "--masks", required=True, type=pathlib.Path, help="folder of PNG masks of the same names"
  )
  parser.add_argument("--count", type=int, default=64, help="crops a chunk; a multiple of 8")
  parser.add_argument("--rounds", type=int, default=7)
  flags = parser.parse_args()
  if flags.count < BATCH or flags.count % BATCH:
    parser.error(f"--count is {flags.count}; expected a multiple of {BATCH}")
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  cv2.setNumThreads(1)
  pairs = read_pairs(flags.pictures, flags.masks)
  check(pairs)
  # What it is called in the table → what makes `count` crops.
  makers: dict[str, Callable[[Iterator[tuple[Pair, int]]], None]] = {
    OURS: lambda work: stack(ours(*item) for item in work),
    "ours, colours by the device's code on this core": lambda work: stack(
      (ours(*item) for item in work), distort=True
    ),
    "train_batches": through_train_batches(flags.pictures, flags.masks),
    OTHER: lambda work: stack(other(*item) for item in work),
    "other without colours": lambda work: stack(other(*item, distort=False) for item in work),
    "ours without counting classes": lambda work: stack(ours(*item, cat_max_ratio=1.0) for item in work),
    "other without counting classes": lambda work: stack(other(*item, retries=0) for item in work),
  }
  rates: dict[str, list[float]] = {name: [] for name in makers}
  for index in range(-1, flags.rounds):  # round -1 warms up
    for name, make in makers.items():
      seeds = range(max(index, 0) * flags.count, (max(index, 0) + 1) * flags.count)
      work = [(pairs[seed % len(pairs)], seed) for seed in seeds]
      start = time.process_time()
      make(iter(work))
      if index >= 0:
        rates[name].append(flags.count / (time.process_time() - start))
    if index >= 0:
      print(f"round {index + 1}: " + ", ".join(f"{n} {r[-1]:.0f}/s" for n, r in rates.items()), flush=True)
  print(f"{len(pairs)} pictures of {flags.pictures}, {CROP}x{CROP} crops a second on one core, medians:")
  for name, values in rates.items():
    print(f"  {name}: {statistics.median(values):.0f}/s")
  for mine, theirs in (
    (OURS, OTHER),
    ("train_batches", OTHER),
    ("ours, colours by the device's code on this core", OTHER),
    (OURS, "other without colours"),
    ("ours without counting classes", "other without counting classes"),
  ):
    ratios = [a / b for a, b in zip(rates[mine], rates[theirs], strict=True)]
    print(f"  {mine} / {theirs}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def stack(crops: Iterator[tuple[np.ndarray, np.ndarray]], *, distort: bool = False) -> None:
  """Batches of what the iterator gives, dropped when made."""
  while batch := list(itertools.islice(crops, BATCH)):
    image = np.stack([image for image, _ in batch])
    np.stack([label for _, label in batch], dtype=np.int32)
    if distort:
      _distort(image, jax.random.key(0)).block_until_ready()


def through_train_batches(
  pictures: pathlib.Path, masks: pathlib.Path
) -> Callable[[Iterator[tuple[Pair, int]]], None]:
  """A maker of as many crops by the library's own iterator, over the same pictures prepared as a folder."""
  root = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, root)
  for name, target in (("images", pictures), ("masks", masks)):
    (root / name).symlink_to(target.resolve())
  (root / "train.txt").write_text("\n".join(sorted(p.name for p in pictures.iterdir())))
  settings = types.SimpleNamespace(
    name="folder",
    manual_dir=str(root),
    data_dir=str(root / "prepared"),
    train_split="train",
    classes=tuple(f"class {i}" for i in range(255)),
    label_map=(),
    crop_size=(CROP, CROP),
    resize=BASE,
    scale_range=SCALES,
    scale_step=0.0,
    cat_max_ratio=CAT_MAX_RATIO,
    flip=0.5,
    pad="after_flip",
    workers=0,
  )
  batches = train_batches(settings, batch_size=BATCH, seed=0, start_step=0)

  def make(work: Iterator[tuple[Pair, int]]) -> None:
    for _ in range(len(list(work)) // BATCH):
      next(batches)

  return make


def read_pairs(pictures: pathlib.Path, masks: pathlib.Path) -> list[Pair]:
  """Encoded pictures with their masks, by name."""
  files = sorted(p for p in pictures.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
  pairs = [(p.read_bytes(), (masks / f"{p.stem}.png").read_bytes()) for p in files]
  if not pairs:
    raise SystemExit(f"{pictures} holds no .jpg, .jpeg or .png")
  return pairs


def ours(pair: Pair, seed: int, *, cat_max_ratio: float = CAT_MAX_RATIO) -> tuple[np.ndarray, np.ndarray]:
  """One crop as `jaxseg.data.train_batches` makes it."""
  rule = GeometryRule(crop_size=(CROP, CROP), resize=BASE, scale_range=SCALES, cat_max_ratio=cat_max_ratio)
  image, label = decode_image(pair[0]), decode_mask(pair[1])
  geometry = draw_geometry(np.random.default_rng(seed), label.shape, rule, label=label)
  return apply_geometry(image, label, geometry, crop_size=rule.crop_size)


_distort = jax.jit(color.distort)


def other(pair: Pair, seed: int, *, distort: bool = True, retries: int = 10) -> tuple[np.ndarray, np.ndarray]:
  """One crop the plain way: whole picture, step after step."""
  rng = np.random.default_rng(seed)
  image = cv2.imdecode(np.frombuffer(pair[0], np.uint8), cv2.IMREAD_COLOR)
  label = np.asarray(Image.open(io.BytesIO(pair[1])))
  ratio = rng.uniform(*SCALES)
  h, w = fit_size(label.shape, (int(BASE[0] * ratio), int(BASE[1] * ratio)))
  image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
  label = cv2.resize(label, (w, h), interpolation=cv2.INTER_NEAREST)

  def window():
    top = int(rng.integers(max(h - CROP, 0) + 1))
    left = int(rng.integers(max(w - CROP, 0) + 1))
    return np.s_[top : top + CROP, left : left + CROP]

  place = window()
  for _ in range(retries):
    ids, counts = np.unique(label[place], return_counts=True)
    counts = counts[ids != 255]
    if len(counts) > 1 and counts.max() / counts.sum() < CAT_MAX_RATIO:
      break
    place = window()
  image, label = image[place], label[place]
  if rng.random() < 0.5:
    image, label = np.flip(image, axis=1), np.flip(label, axis=1)
  if distort:
    image = distorted(image, rng)
  if image.shape[:2] == (CROP, CROP):
    return np.ascontiguousarray(image), np.ascontiguousarray(label)
  bottom, right = CROP - image.shape[0], CROP - image.shape[1]
  image = cv2.copyMakeBorder(np.ascontiguousarray(image), 0, bottom, 0, right, cv2.BORDER_CONSTANT)
  label = cv2.copyMakeBorder(np.ascontiguousarray(label), 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=255)
  return image, label


def distorted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Brightness, contrast, saturation, hue on a BGR crop in 8 bits, each with probability one half."""

  def linear(x, alpha=1.0, beta=0.0):
    return np.clip(x.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

  if rng.integers(2):
    image = linear(image, beta=rng.uniform(-32, 32))
  contrast_first = rng.integers(2)
  if contrast_first and rng.integers(2):
    image = linear(image, alpha=rng.uniform(0.5, 1.5))
  if rng.integers(2):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 1] = linear(hsv[..., 1], alpha=rng.uniform(0.5, 1.5))
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
  if rng.integers(2):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
  if not contrast_first and rng.integers(2):
    image = linear(image, alpha=rng.uniform(0.5, 1.5))
  return image


def check(pairs: list[Pair]) -> None:
  """Both pipelines make the same crops from the same draws."""
  for seed in range(min(len(pairs), 20)):
    (image, label), (image2, label2) = ours(pairs[seed], seed), other(pairs[seed], seed, distort=False)
    height, width = (int((label2 != 255).any(axis).sum()) for axis in (1, 0))
    window = np.s_[:height, :width]
    assert (label == label2).all(), f"labels differ under seed {seed}"
    worst = np.abs(image[window].astype(int) - image2[window][..., ::-1]).max()
    assert worst <= 1, f"pictures differ by {worst} grey levels under seed {seed}"


if __name__ == "__main__":
  main()
