"""Images of one class each, drawn on the fly: a texture of `jaxseg.data.synthetic` all over the picture.

What ImageNet is to pretraining, without a download: for tests, and to try the recipe.
"""

from typing import Any

from jaxseg.data import synthetic
from jaxseg.data.source import DataError, DatasetInfo, color_map


def info(config_data: Any) -> DatasetInfo:
  """`config_data.classes` when given, at least two names, else the eight patterns."""
  classes = tuple(config_data.classes) or synthetic.PATTERNS
  if len(classes) < 2:
    raise DataError(f"synthetic_classes: {len(classes)} class; give at least 2 names or none")
  return DatasetInfo(name="synthetic_classes", classes=classes, palette=color_map(len(classes)))


def open_split(config_data: Any, split: str) -> synthetic.SyntheticSource:
  """Reads `image_size`, `num_train`, `num_val` and `classes`; "test" is as long as "val".

  An example is {"image": uint8 h w 3, "label": int, "id": str}, as of ImageNet.
  """
  length, size = synthetic.split_settings("synthetic_classes", config_data, split)
  return synthetic.SyntheticSource(split, length, size, info(config_data).num_classes, synthetic.draw_texture)
