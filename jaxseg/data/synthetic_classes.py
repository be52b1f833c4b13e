"""Images of one class each, drawn on the fly: a texture of `jaxseg.data.synthetic` all over the picture.

What ImageNet is to pretraining, without a download: for tests, and to try the recipe.
"""

import dataclasses
from typing import Any

from jaxseg.data import synthetic
from jaxseg.data.source import DataError, DatasetInfo, color_map


def info(config_data: Any) -> DatasetInfo:
  """`config_data.classes` when given, at least two names, else the eight patterns."""
  classes = tuple(config_data.classes) or synthetic.PATTERNS
  if len(classes) < 2:
    raise DataError(f"synthetic_classes: {len(classes)} class; give at least 2 names or none")
  return DatasetInfo(name="synthetic_classes", classes=classes, palette=color_map(len(classes)))


def open_split(config_data: Any, split: str) -> "SyntheticClassSource":
  """Reads `image_size`, `num_train`, `num_val` and `classes`; "test" is as long as "val"."""
  length, size = synthetic.split_settings("synthetic_classes", config_data, split)
  return SyntheticClassSource(split, length, size, info(config_data).num_classes)


@dataclasses.dataclass(frozen=True)
class SyntheticClassSource:
  """One split: {"image": uint8 h w 3, "label": int, "id": str}, as of ImageNet."""

  split: str
  length: int
  shape: tuple[int, int]
  num_classes: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self.length:
      raise IndexError(f"index {index} is outside the {self.length} examples of split {self.split!r}")
    stream = synthetic.STREAMS[self.split]
    image, label = synthetic.draw_texture(
      synthetic.SEED, stream, index, size=self.shape, num_classes=self.num_classes
    )
    return {"image": image, "label": label, "id": f"{self.split}-{index:06d}"}

  def size(self, index: int) -> tuple[int, int]:
    """(h, w), the same for every index."""
    return self.shape
