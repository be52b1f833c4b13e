"""Sources of pictures with one class each → batches for image classifiers, by the rules of `pipeline`.

What happens to a picture on the host is in `jaxseg.data.classification`, what happens to a batch on
the device in `jaxseg.data.mixing`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxseg.data import open_split
from jaxseg.data.classification import INTERPOLATIONS, eval_image, train_image
from jaxseg.data.pipeline import augmented_batches, chosen_rows, read_in_threads, stack
from jaxseg.data.source import DataError, Source
from jaxseg.types import Batch


def classifier_train_batches(
  config_data: Any,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
  source: Source | None = None,
) -> Iterator[Batch]:
  """Endless augmented batches from `start_step` on: this process's rows of each global batch.

  Args:
    config_data: reads name, train_split, crop_size, crop_area, crop_aspect, flip, interpolation,
      randaugment_layers, randaugment_magnitude, randaugment_std, workers, and what the dataset reads.
    batch_size: of all processes together, like the rest (`source` too) as in `train_batches`.

  Yields:
    {"image": uint8 b h w 3, "label": int32 b, "id": str array b}.

  Raises:
    DataError: sizes, ranges or places that do not fit.
  """
  check_settings(config_data)
  return augmented_batches(
    _source(config_data, config_data.train_split, source),
    _AugmentPicture(
      seed,
      size=config_data.crop_size[0],
      area=tuple(config_data.crop_area),
      aspect=tuple(config_data.crop_aspect),
      flip=config_data.flip,
      interpolation=config_data.interpolation,
      layers=config_data.randaugment_layers,
      magnitude=config_data.randaugment_magnitude,
      magnitude_std=config_data.randaugment_std,
    ),
    workers=config_data.workers,
    batch_size=batch_size,
    seed=seed,
    start_step=start_step,
    process_index=process_index,
    process_count=process_count,
    rows=rows,
    example_bytes=3 * config_data.crop_size[0] ** 2,
  )


def classifier_eval_batches(
  config_data: Any,
  split: str,
  *,
  batch_size: int,
  crop_share: float = 0.875,
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
  source: Source | None = None,
) -> Iterator[Batch]:
  """The middle of every picture of a split, once: this process's rows of each global batch.

  The last batch is filled up with black pictures whose label is -1 and whose id is "".
  `crop_share` is as in `eval_image`; the rest is as in `classifier_train_batches`.
  """
  check_settings(config_data)
  rows = chosen_rows(batch_size, process_index, process_count, rows)
  source = _source(config_data, split, source)
  load = _LoadRows(source, batch_size, rows, config_data.crop_size[0], crop_share, config_data.interpolation)
  return read_in_threads(load, -(-len(source) // batch_size), config_data.workers)


def check_settings(config_data: Any) -> None:
  """The settings alone; no picture is read.

  Raises:
    DataError: the key, its value, what is expected.
  """
  height, width = config_data.crop_size
  if height != width:
    raise DataError(
      f"data.crop_size is {(height, width)}; classifiers are trained on squares, {(height,) * 2}"
    )
  low, high = config_data.crop_area
  if not 0 < low <= high <= 1:
    raise DataError(f"data.crop_area is {(low, high)}; expected shares of the picture, 0 < low <= high <= 1")
  low, high = config_data.crop_aspect
  if not 0 < low <= high:
    raise DataError(
      f"data.crop_aspect is {(low, high)}; expected widths over heights, (low, high) with 0 < low <= high"
    )
  if config_data.interpolation not in INTERPOLATIONS:
    known = ", ".join(map(repr, INTERPOLATIONS))
    raise DataError(f"data.interpolation is {config_data.interpolation!r}; expected one of {known}")


def _source(config_data: Any, split: str, opened: Source | None) -> Source:
  """The split (`opened` where it is already), which has to be one of pictures with a class each.

  Raises:
    DataError: its labels are masks.
  """
  source = open_split(config_data, split) if opened is None else opened
  if len(source) and np.ndim(source[0]["label"]):
    raise DataError(
      f"{config_data.name} has masks, not a class for each picture; to train a classifier, set data.name to"
      " 'imagenet' or 'synthetic_classes'"
    )
  return source


@dataclasses.dataclass(frozen=True)
class _AugmentPicture(grain.transforms.MapWithIndex):
  seed: int
  size: int
  area: tuple[float, float]
  aspect: tuple[float, float]
  flip: float
  interpolation: str
  layers: int
  magnitude: float
  magnitude_std: float

  def map_with_index(self, index: int, element: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng((self.seed, 0, index))
    settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "seed"}
    return {**element, "image": train_image(element["image"], rng, **settings)}


@dataclasses.dataclass(frozen=True)
class _LoadRows(grain.transforms.Map):
  """Number of a batch → this process's rows of it, filled up to their number."""

  source: Source
  batch_size: int
  rows: Sequence[int]
  size: int
  crop_share: float
  interpolation: str

  def map(self, element: int) -> Batch:
    first = element * self.batch_size
    return stack([self._example(first + row) for row in self.rows])

  def _example(self, index: int) -> dict[str, Any]:
    if index >= len(self.source):
      return {"image": np.zeros((self.size, self.size, 3), np.uint8), "label": -1, "id": ""}
    example = self.source[index]
    image = eval_image(
      example["image"], size=self.size, crop_share=self.crop_share, interpolation=self.interpolation
    )
    return {**example, "image": image}
