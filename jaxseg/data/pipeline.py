"""Sources → batches, with Grain. The data position is the global step and nothing else.

Training is a pure function (seed, global example index) → example: epoch after epoch of
a global shuffle, each example augmented by a generator seeded with its index. Batch
`s` holds the indices [s·B, (s+1)·B), of which process h of n reads the h-th n-th, so
that batches depend neither on the number of processes nor on that of worker threads,
and resuming is starting to count at another step.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from jaxseg.data import open_split
from jaxseg.data.source import DataError, Source
from jaxseg.data.transforms import MEAN_FILL, GeometryRule, apply_geometry, draw_geometry, make_rule
from jaxseg.types import IGNORE_LABEL, Batch

_SHUFFLE_STREAM = 1  # keeps the shuffle's seed apart from the examples'


def train_batches(
  config_data: Any,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
  fill: tuple[int, int, int] = MEAN_FILL,
) -> Iterator[Batch]:
  """Endless augmented batches from `start_step` on: this process's rows of each global batch.

  Args:
    config_data: reads name, train_split, crop_size, scale_range, scale_step, flip,
      workers, and what the dataset reads.
    batch_size: of all processes together; must be a multiple of `process_count`.
    seed: at least 0; with the step it determines the batch.
    start_step: global step of the first batch; costs the same for any value.
    process_index: this process's place, 0 to process_count - 1.
    process_count: how many processes share a batch.
    fill: RGB grey levels where a scaled-down image does not reach; the model's mean
      colour gives the published "0 after normalisation".

  Yields:
    {"image": uint8 b h w 3, "label": int32 b h w, "id": str array b}.

  Raises:
    DataError: sizes, ranges or places that do not fit.
  """
  rows = _rows_of_process(batch_size, process_index, process_count)
  if seed < 0 or start_step < 0:
    raise DataError(f"seed is {seed} and start_step {start_step}; both must be at least 0")
  rule = make_rule(
    crop_size=config_data.crop_size,
    scale_range=config_data.scale_range,
    scale_step=config_data.scale_step,
    flip=config_data.flip,
  )
  examples = _examples(open_split(config_data, config_data.train_split), rule, seed=seed, fill=fill)
  mine = _Rows(examples, batch_size=batch_size, start_step=start_step, first=rows.start, count=len(rows))
  options = _read_options(config_data.workers, ahead=2 * len(rows))
  return iter(grain.MapDataset.source(mine).to_iter_dataset(options).batch(len(rows), batch_fn=_stack))


def eval_batches(
  config_data: Any,
  split: str,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Every example of a split once, unchanged: this process's rows of each global batch.

  Consecutive images of one size share a batch. The last batch of each such run is
  filled up with black images whose labels are all 255 and whose id is "".

  Args and yields are those of `train_batches`.
  """
  rows = _rows_of_process(batch_size, process_index, process_count)
  source = open_split(config_data, split)
  plan = _plan(source, batch_size)
  load = _LoadRows(
    source, [members[rows.start : rows.stop] for members, _ in plan], [s for _, s in plan], len(rows)
  )
  options = _read_options(config_data.workers, ahead=2)
  return iter(grain.MapDataset.range(len(plan)).map(load).to_iter_dataset(options))


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
  if batch_size < 1 or batch_size % process_count:
    lower = batch_size // process_count * process_count
    raise DataError(
      f"batch size {batch_size} cannot be shared evenly by {process_count} processes;"
      f" use {f'{lower} or ' if lower else ''}{lower + process_count}"
    )
  if not 0 <= process_index < process_count:
    raise DataError(f"process_index is {process_index}; expected 0 to {process_count - 1}")
  count = batch_size // process_count
  return range(process_index * count, (process_index + 1) * count)


def _read_options(workers: int, *, ahead: int) -> grain.ReadOptions:
  """`workers` threads, none at 0, that stay about `ahead` elements before the reader."""
  if workers < 0:
    raise DataError(f"data.workers is {workers}; expected 0 (no threads) or more")
  return grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(ahead, workers) if workers else 0)


def _examples(
  source: Source, rule: GeometryRule, *, seed: int, fill: tuple[int, int, int]
) -> grain.MapDataset:
  """Global example index → augmented example, for any index below 2^63."""
  shuffle_seed = int(np.random.SeedSequence((seed, _SHUFFLE_STREAM)).generate_state(1)[0])
  shuffled = grain.MapDataset.source(source).shuffle(seed=shuffle_seed).repeat()
  return shuffled.map_with_index(_Augment(rule, seed, fill))


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.MapWithIndex):
  rule: GeometryRule
  seed: int
  fill: tuple[int, int, int]

  def map_with_index(self, index: int, element: dict[str, Any]) -> dict[str, Any]:
    # Our own generator: Grain's per-index one may change between its versions.
    rng = np.random.default_rng((self.seed, 0, index))
    image, label = element["image"], element["label"]
    geometry = draw_geometry(rng, label.shape, self.rule)
    image, label = apply_geometry(image, label, geometry, crop_size=self.rule.crop_size, fill=self.fill)
    return {"image": image, "label": label, "id": element["id"]}


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The examples of one process in its own order; index 0 is its first row at `start_step`."""

  examples: grain.MapDataset
  batch_size: int
  start_step: int
  first: int
  count: int

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> dict[str, Any]:
    step, row = divmod(index, self.count)
    return self.examples[(self.start_step + step) * self.batch_size + self.first + row]


def _stack(examples: list[dict[str, Any]]) -> Batch:
  return {
    "image": np.stack([e["image"] for e in examples]),
    "label": np.stack([e["label"] for e in examples], dtype=np.int32),
    "id": np.array([e["id"] for e in examples]),
  }


def _plan(source: Source, batch_size: int) -> list[tuple[list[int], tuple[int, int]]]:
  """Batches of consecutive indices with one image size; every process makes the same plan."""
  plan: list[tuple[list[int], tuple[int, int]]] = []
  for index in range(len(source)):
    size = source.size(index)
    if not plan or plan[-1][1] != size or len(plan[-1][0]) == batch_size:
      plan.append(([], size))
    plan[-1][0].append(index)
  return plan


@dataclasses.dataclass(frozen=True)
class _LoadRows(grain.transforms.Map):
  """Number of a batch → this process's rows of it, filled up to `count`."""

  source: Source
  members: list[list[int]]
  sizes: list[tuple[int, int]]
  count: int

  def map(self, element: int) -> Batch:
    examples = [self.source[i] for i in self.members[element]]
    shape = self.sizes[element]
    blank = {
      "image": np.zeros((*shape, 3), np.uint8),
      "label": np.full(shape, IGNORE_LABEL, np.uint8),
      "id": "",
    }
    return _stack(examples + [blank] * (self.count - len(examples)))
