"""Data sets of other libraries: their classes, and which entry of an example is the image, which the mask."""

from collections.abc import Sequence
from typing import Any

from jaxseg.data.source import DataError, DatasetInfo, color_map, make_info

_IMAGES = ("image", "pixel_values", "img", "photo")
_MASKS = (
  "segmentation_mask", "mask", "annotation", "label", "labels", "segmentation_label", "semantic_mask",
  "semantic_segmentation", "ground_truth", "gt",
)  # fmt: skip


def info(config_data: Any) -> DatasetInfo:
  """Names from `config_data.classes`; data sets of others have no common way to tell those of masks."""
  classes = tuple(config_data.classes)
  if not classes:
    raise DataError(f"{config_data.name}: data.classes is empty; give the names in the order of the ids")
  return make_info(config_data.name, classes, color_map(len(classes)))


def choose_columns(name: str, pictures: Sequence[str], given: Sequence[str] = ()) -> tuple[str, str]:
  """(image, mask) among `pictures`, the entries that hold encoded pictures.

  Args:
    name: of the data set, for the message.
    pictures: their names.
    given: `config.data.columns`, (image, mask), or () for the usual names.

  Raises:
    DataError: entries that are not there, or cannot be told apart.
  """
  listed = ", ".join(pictures) or "none"
  if len(given):
    if len(given) != 2 or not set(given) <= set(pictures):
      raise DataError(
        f"data.columns is {tuple(given)}; expected (image, mask) among the pictures of {name}: {listed}"
      )
    return given[0], given[1]
  image = next((key for key in _IMAGES if key in pictures), None)
  mask = next((key for key in _MASKS if key in pictures and key != image), None)
  if image is None or mask is None:
    raise DataError(
      f"{name} has the pictures {listed}; say which two are meant with data.columns, such as (image,mask)"
    )
  return image, mask
