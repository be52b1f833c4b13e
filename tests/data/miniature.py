"""Small data sets on disk, and the settings that a config would give."""

import pathlib
from types import SimpleNamespace

import numpy as np
from PIL import Image


def settings(name: str, **changes) -> SimpleNamespace:
  """`config.data` as the data room reads it."""
  values = dict(
    name=name,
    data_dir="",
    manual_dir="",
    train_split="train",
    eval_split="val",
    crop_size=(32, 48),
    scale_range=(0.5, 2.0),
    scale_step=0.0,
    resize=(),
    cat_max_ratio=1.0,
    flip=0.5,
    pad="after_flip",
    color="none",
    classes=(),
    label_map=(),
    image_size=(48, 64),
    num_train=10,
    num_val=5,
    workers=0,
  )
  return SimpleNamespace(**(values | changes))


def write_pair(
  image: pathlib.Path, mask: pathlib.Path, *, size=(24, 32), seed=0, ids=range(12)
) -> tuple[np.ndarray, np.ndarray]:
  """A picture (its suffix decides the format) and an 8-bit grey mask; returns both as arrays."""
  rng = np.random.default_rng(seed)
  # Smooth, so that JPEG changes little.
  picture = np.kron(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3)), np.ones((8, 8, 1))).astype(
    np.uint8
  )
  label = rng.choice(list(ids), size=size).astype(np.uint8)
  for path in (image, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture).save(image)
  Image.fromarray(label).save(mask)
  return picture, label


def camvid(root: pathlib.Path, *, counts=(("train", 4), ("val", 3)), suffix=".png") -> dict:
  """The SegNet folder layout; returns (split, name) → (picture, raw label)."""
  return {
    (split, f"{split}_{i}"): write_pair(
      root / split / f"{split}_{i}{suffix}",
      root / f"{split}annot" / f"{split}_{i}.png",
      size=(24, 32) if i % 3 else (32, 24),
      seed=i,
    )
    for split, count in counts
    for i in range(count)
  }
