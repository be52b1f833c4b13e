"""Sources → batches, with Grain. The data position is the global step and nothing else.

Training is a pure function (seed, global example index) → example: epoch after epoch of
a global shuffle, each example augmented by a generator seeded with its index. Batch
`s` holds the indices [s·B, (s+1)·B), of which process h of n reads the h-th n-th (or the
rows it is told), so that batches depend neither on the number of hosts nor on that of worker processes
(`jaxseg.data.workers`), and resuming is starting to count at another step.
"""

import dataclasses
import functools
import sys
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from jaxseg.data import open_split
from jaxseg.data.augment import Extra, load_transform
from jaxseg.data.source import DataError, Examples, Source, known_sizes
from jaxseg.data.transforms import (
  MEAN_FILL,
  GeometryRule,
  apply_geometry,
  draw_geometry,
  filled_box,
  make_rule,
)
from jaxseg.data.workers import AUTO, iterate, worker_count
from jaxseg.types import IGNORE_LABEL, Batch

_SHUFFLE_STREAM = 1  # keeps the shuffle's seed apart from the examples'
_MOST_THREADS = 8  # each holds a batch
_ENDLESS = sys.maxsize // 2  # Grain rounds lengths up to whole batches
NO_EXTRA = Extra()


@runtime_checkable
class Grouping(Protocol):
  """Which images of a split share a batch, and how they become one.

  Those of equal `key` (of their (rows, columns)) do. `collate` gets the examples of one
  process, the `sizes` of the whole batch's, and the `count` of rows to make.
  """

  def key(self, size: tuple[int, int]) -> Hashable: ...
  def collate(
    self, examples: Sequence[dict[str, Any]], *, sizes: Sequence[tuple[int, int]], count: int
  ) -> Batch: ...


def train_batches(
  config_data: Any,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
  fill: tuple[int, ...] = MEAN_FILL,
  source: Source | None = None,
) -> Iterator[Batch]:
  """Endless augmented batches from `start_step` on: this process's rows of each global batch.

  Args:
    config_data: reads name, train_split, crop_size, resize, scale_range, scale_step,
      cat_max_ratio, flip, pad, workers, where present flip_vertical, rotate, blur and extra
      (`jaxseg.data.augment`), and what the dataset reads.
    batch_size: of all processes together; must be a multiple of `process_count`.
    seed: at least 0; with the step it determines the batch.
    start_step: global step of the first batch; costs the same for any value.
    process_index: this process's place, 0 to process_count - 1.
    process_count: how many processes share a batch.
    rows: which rows of each global batch to read, ascending, in place of the two arguments before
      (`jaxseg.sharding.rows_to_read`: processes that share an image read the same).
    fill: RGB grey levels where a scaled-down image does not reach; the model's mean
      colour gives the published "0 after normalisation".
    source: the training split, opened already: then no file is looked at again. None opens it.

  Yields:
    {"image": uint8 b h w 3, "label": uint8 b h w, "id": str array b, "box": int32 b 4},
    where `box` is (top, left, bottom, right) of what is not padding. The iterator has a method `close`,
    which ends its worker processes at once; otherwise they end with the iterator.

  Raises:
    DataError: sizes, ranges or places that do not fit.
  """
  rule = make_rule(
    crop_size=config_data.crop_size,
    scale_range=config_data.scale_range,
    scale_step=config_data.scale_step,
    flip=config_data.flip,
    resize=config_data.resize,
    cat_max_ratio=config_data.cat_max_ratio,
    pad=config_data.pad,
  )
  if source is None:
    source = open_split(config_data, config_data.train_split)
  _check_masks(source, config_data.name)
  get = lambda key, default: getattr(config_data, key, default)  # noqa: E731
  extra = Extra(
    flip_vertical=get("flip_vertical", 0.0),
    rotate=get("rotate", 0.0),
    blur=get("blur", 0.0),
    transform=load_transform(get("extra", "")),
  )
  return batches(
    source,
    rule,
    extra=extra,
    fill=fill,
    workers=config_data.workers,
    batch_size=batch_size,
    seed=seed,
    start_step=start_step,
    process_index=process_index,
    process_count=process_count,
    rows=rows,
  )


def batches(
  source: Examples,
  rule: GeometryRule,
  *,
  extra: Extra = NO_EXTRA,
  batch_size: int,
  seed: int = 0,
  start_step: int = 0,
  workers: int = AUTO,
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
  fill: tuple[int, ...] = MEAN_FILL,
) -> Iterator[Batch]:
  """`train_batches` of any source: of your own, of TFDS, of Hugging Face (`jaxseg.data.sources`).

  Args:
    source: anything with `len(source)` and `source[i]` → {"image": uint8 h w 3 (RGB), "label": uint8 h w
      (train ids, 255 = no label)}, and "id" where examples have names; Grain's `RandomAccessDataSource`.
      With workers it has to pickle.
    rule: how crops are drawn, of `jaxseg.data.make_rule`.
    extra: further changes of a crop, such as your own transform; it is tried on the first example.
    batch_size: of all hosts together, like the next as in `train_batches`.
    workers: worker processes; -1 is one for each core, 0 none.

  Yields:
    As `train_batches`; without an "id" the index in the source stands for it.

  Raises:
    DataError: an empty source, and as `train_batches`.
  """
  augment = _Augment(rule, seed, fill, extra)
  if extra and len(source):
    augment.map_with_index(0, _named(source, 0))  # its faults are known here, not in a worker process
  return augmented_batches(
    source,
    augment,
    workers=workers,
    batch_size=batch_size,
    seed=seed,
    start_step=start_step,
    process_index=process_index,
    process_count=process_count,
    rows=rows,
    example_bytes=4 * rule.crop_size[0] * rule.crop_size[1],
  )


def _check_masks(source: Source, name: str) -> None:
  if len(source) and not np.ndim(source[0]["label"]):
    raise DataError(
      f"config.data.name is {name!r}, whose pictures have one class each and no masks; choose a data set"
      " for segmentation"
    )


def augmented_batches(
  source: Examples,
  augment: grain.transforms.MapWithIndex,
  *,
  workers: int,
  batch_size: int,
  seed: int,
  start_step: int,
  process_index: int,
  process_count: int,
  rows: Sequence[int] | None = None,
  example_bytes: int = 0,
) -> Iterator[Batch]:
  """`train_batches` of any source whose examples `augment` changes, by their global index below 2^63."""
  rows = chosen_rows(batch_size, process_index, process_count, rows)
  if seed < 0 or start_step < 0:
    raise DataError(f"seed is {seed} and start_step {start_step}; both must be at least 0")
  if not len(source):
    raise DataError("the source of the batches is empty; give one with at least one example")
  examples = grain.MapDataset.source(_Epochs(source, seed)).map_with_index(augment)
  mine = _Rows(examples, batch_size=batch_size, start_step=start_step, rows=rows)
  whole = grain.MapDataset.source(mine).batch(len(rows), batch_fn=stack)
  return iterate(whole, workers, batch_bytes=example_bytes * len(rows))


def eval_batches(
  config_data: Any,
  split: str,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
  grouping: Grouping | None = None,
  source: Source | None = None,
) -> Iterator[Batch]:
  """Every example of a split once, unchanged: this process's rows of each global batch.

  Images of one size share a batch, wherever they stand in the split. The last batch of each
  size is filled up with black images whose labels are all 255 and whose id is "".

  Args and yields are those of `train_batches`, but for `box`; `grouping` decides otherwise what
  shares a batch and what a batch holds. Batches are made in threads: nearly all of the work is decoding,
  which runs side by side, and processes take longer to start than most splits to read.
  """
  rows = chosen_rows(batch_size, process_index, process_count, rows)
  if source is None:
    source = open_split(config_data, split)
  _check_masks(source, config_data.name)
  grouping = grouping or SameSize()
  plan = group_by_size(source, batch_size, grouping)
  return read_in_threads(_LoadRows(source, grouping, plan, rows), len(plan), config_data.workers)


def chosen_rows(
  batch_size: int, process_index: int, process_count: int, rows: Sequence[int] | None
) -> Sequence[int]:
  """`rows` of a global batch where they are given, else those of `rows_of_process`.

  Raises:
    DataError: they are not ascending rows of the batch; as `rows_of_process`.
  """
  if rows is None:
    return rows_of_process(batch_size, process_index, process_count)
  if not rows or list(rows) != sorted({row for row in rows if 0 <= row < batch_size}):
    raise DataError(f"rows is {tuple(rows)}; expected rows of a batch of {batch_size}, ascending")
  return tuple(rows)


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
  """The rows of a global batch that a process reads.

  Raises:
    DataError: the processes cannot share it evenly, or there is no such process.
  """
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


def read_in_threads(load: grain.transforms.Map, count: int, workers: int) -> Iterator[Batch]:
  """`load` of 0 to `count` - 1 in order, in as many threads as there would be `workers`; none at 0."""
  threads = min(worker_count(workers), _MOST_THREADS)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads) if threads else 0)
  return iter(grain.MapDataset.range(count).map(load).to_iter_dataset(options))


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.MapWithIndex):
  rule: GeometryRule
  seed: int
  fill: tuple[int, ...]
  extra: Extra

  def map_with_index(self, index: int, element: dict[str, Any]) -> dict[str, Any]:
    # Our own generator: Grain's per-index one may change between its versions.
    rng = np.random.default_rng((self.seed, 0, index))
    image, label = element["image"], element["label"]
    geometry = draw_geometry(rng, label.shape, self.rule, label=label)
    place = dict(crop_size=self.rule.crop_size, pad=self.rule.pad)
    image, label = apply_geometry(image, label, geometry, fill=self.fill, exact=False, **place)
    box = np.array(filled_box(geometry, **place), np.int32)
    if self.extra:
      image, label = self.extra(image, label, rng, fill=self.fill)
    return {"image": image, "label": label, "id": element["id"], "box": box}


@dataclasses.dataclass(frozen=True)
class _Epochs:
  """The examples of a split, epoch after epoch, each epoch in an order of its own."""

  source: Examples
  seed: int

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> dict[str, Any]:
    epoch, place = divmod(index, len(self.source))
    return _named(self.source, int(_epoch_order(self.seed, epoch, len(self.source))[place]))


def _named(source: Examples, index: int) -> dict[str, Any]:
  """An example; where it has no name, its index stands for it."""
  example = source[index]
  return example if "id" in example else {**example, "id": str(index)}


# Two, for the batch that holds the end of an epoch. Grain's own shuffle needs no list, but with a few hundred
# examples or less takes up to 4 ms for each of them.
@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
  return np.random.default_rng((seed, _SHUFFLE_STREAM, epoch)).permutation(length)


@dataclasses.dataclass(frozen=True)
class _Rows:
  """The examples of one process in its own order; index 0 is its first row at `start_step`."""

  examples: grain.MapDataset
  batch_size: int
  start_step: int
  rows: Sequence[int]

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> dict[str, Any]:
    step, row = divmod(index, len(self.rows))
    return self.examples[(self.start_step + step) * self.batch_size + self.rows[row]]


def stack(examples: list[dict[str, Any]]) -> Batch:
  """Examples of one shape as a batch; labels that are one number each become int32."""
  batch = {name: np.stack([np.asarray(e[name]) for e in examples]) for name in examples[0]}
  if batch["label"].ndim == 1:
    batch["label"] = batch["label"].astype(np.int32)
  return batch


class SameSize:
  """Images of one size, as they are."""

  def key(self, size: tuple[int, int]) -> Hashable:
    return size

  def collate(
    self, examples: Sequence[dict[str, Any]], *, sizes: Sequence[tuple[int, int]], count: int
  ) -> Batch:
    channels = np.shape(examples[0]["image"])[2] if len(examples) else 3
    blank = {
      "image": np.zeros((*sizes[0], channels), np.uint8),
      "label": np.full(sizes[0], IGNORE_LABEL, np.uint8),
      "id": "",
    }
    return stack([*examples, *[blank] * (count - len(examples))])


def group_by_size(
  source: Source, batch_size: int, grouping: Grouping
) -> list[list[tuple[int, tuple[int, int]]]]:
  """(index, size) of the members of each batch; every process makes the same list.

  Groups come in the order of their first image; images of one size are neighbours in a group.
  """
  groups: dict[Hashable, list[tuple[int, tuple[int, int]]]] = {}
  for index, size in enumerate(known_sizes(source)):
    groups.setdefault(grouping.key(size), []).append((index, size))
  plan = []
  for group in groups.values():
    group.sort(key=lambda member: (member[1], member[0]))
    plan += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
  return plan


@dataclasses.dataclass(frozen=True)
class _LoadRows(grain.transforms.Map):
  """Number of a batch → this process's rows of it, filled up to their number."""

  source: Source
  grouping: Grouping
  plan: list[list[tuple[int, tuple[int, int]]]]
  rows: Sequence[int]

  def map(self, element: int) -> Batch:
    members = self.plan[element]
    mine = [members[row] for row in self.rows if row < len(members)]
    examples = [_named(self.source, index) for index, _ in mine]
    return self.grouping.collate(examples, sizes=[size for _, size in members], count=len(self.rows))
