"""From a folder as its authors distribute it to ArrayRecord files that open at any index, through TFDS.

A data set says where its files lie (`Original`); everything else is here: a prepared copy
that stands for exactly one state of the folder, written in shards of bounded size, once,
whole or not at all. Neither direction needs TensorFlow.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from etils import epath

from jaxseg import lazy
from jaxseg.data import files, images, places
from jaxseg.data.progress import Progress
from jaxseg.data.source import DataError

_SHARD_BYTES = 128 * 2**20  # TFDS holds a shard in memory while it is written
_SAMPLE = 32  # items whose size is measured, to choose the number of shards

# An item is what a data set lists for each example, or for each group of examples; its
# `paths` are the files that it is read from.
Load = Callable[[Any], list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Original:
  """A data set as its authors distribute it.

  `find()` lists split → items and raises DataError where the layout is another one;
  `load(item)` reads and checks one item and gives its records; `decode(record)` makes
  the example of one. All work without a prepared copy. `watch` are the files and folders
  whose state decides whether there is a prepared copy of it: with `edits=False` a folder
  counts by its own time alone (files added, removed, renamed), which is all that a
  million files can be asked.
  """

  builder: "type[FileBuilder]"
  root: str  # "": nothing but what is prepared
  find: Callable[[], dict[str, list[Any]]]
  load: Load
  decode: Callable[[Mapping[str, Any]], dict[str, Any]]
  watch: tuple[str, ...]
  salt: bytes = b""  # settings that decide what is prepared, too
  edits: bool = True
  absent: Mapping[str, str] = dataclasses.field(default_factory=dict)  # split → why nobody can have it
  # Split → items, an object with `problems` and `skipped` (lists of sentences), and a notice: a `find` for
  # `check_dataset`, which does not stop at the first problem.
  survey: Callable[[], tuple[dict[str, list[Any]], Any, str]] | None = None


class FileBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """TFDS builder over files; a data set sets `name`, `VERSION` and `features`.

  Written shard by shard rather than by `GeneratorBasedBuilder`, whose shuffler keeps a
  split in memory and needs TensorFlow from 1 GB on.
  """

  VERSION = tfds.core.Version("1.0.0")
  # Nothing is downloaded, so TFDS has no checksum file to look for beside the code
  # (and its search imports a package that TFDS does not install).
  code_path = None
  unit = "pairs"  # of what, in the line that announces the preparation

  def __init__(self, *, data_dir: epath.PathLike, splits: Mapping[str, Sequence[Callable]] | None = None):
    self.splits = splits or {}
    super().__init__(data_dir=data_dir, file_format="array_record")

  def features(self) -> tfds.features.FeaturesDict:
    """What a record holds."""
    return pair_features()

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=self.features(), disable_shuffling=True)

  def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Callable]]:
    return self.splits


def pair_features() -> tfds.features.FeaturesDict:
  """A picture, its mask and a name."""
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.Image(shape=(None, None, 1)),
      "id": tfds.features.Text(),
    }
  )


@dataclasses.dataclass(frozen=True)
class _Shard:
  """The records of some items; a Beam worker receives it pickled, then without `progress`."""

  load: Load
  items: Sequence[Any]
  progress: Progress | None = None

  def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
    # Pillow decodes outside Python's lock, so that threads check pictures side by side.
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
      key = 0
      for records in _ahead(pool, self.load, self.items):
        for record in records:
          yield key, record
          key += 1
        if self.progress is not None:
          self.progress.advance()


def _ahead(
  pool: concurrent.futures.ThreadPoolExecutor, function: Load, items: Iterable[Any]
) -> Iterator[list[dict[str, Any]]]:
  """Results in order, a few more than there are threads under way."""
  waiting: collections.deque[concurrent.futures.Future] = collections.deque()
  try:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > 2 * pool._max_workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    for future in waiting:
      future.cancel()


def fingerprint(original: Original) -> str:
  """16 hex digits that change with the name, size or time of any watched file, and with `salt`."""
  return files.state(original.watch, salt=original.salt, edits=original.edits)


class RecordSource:
  """One prepared split; see `jaxseg.data.source.Source`.

  Opened when it is first read, and again in each process that receives it pickled.

  Args:
    folder: of the prepared data set, with its version.
    split: one of its splits.
    decode: makes an example of a record.
  """

  def __init__(self, folder: str, split: str, decode: Callable[[Mapping[str, Any]], dict[str, Any]]):
    self._folder, self._split, self._decode = folder, split, decode
    self._opened: tuple[Any, str] | None = None

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_opened": None}

  def __len__(self) -> int:
    return len(self._open()[0])

  @property
  def state(self) -> str:
    """Of the files that it was prepared from, which another state of them changes; "" where none is known."""
    prepared = os.path.basename(os.path.dirname(os.path.dirname(self._folder.rstrip("/"))))
    name, _, digits = prepared.rpartition("-")
    return digits if name and len(digits) == 16 else ""

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._record(index)
    try:
      return self._decode(record)
    except (KeyError, TypeError, AttributeError) as error:  # a record that is none of this data set's
      with places.reading(self._folder):
        raise error

  def check_length(self) -> None:
    """Raises DataError where the files hold another number of records than is written beside them."""
    with places.reading(self._folder):
      split = tfds.builder_from_directory(self._folder).info.splits[self._split]
      paths = [os.fspath(path) for path in split.filepaths]
      held = len(array_record_data_source.ArrayRecordDataSource(paths)) if len(self) else 0
      if held != len(self):
        raise ValueError(f"split {self._split!r} holds {held} records, not {len(self)}")

  def size(self, index: int) -> tuple[int, int]:
    """(h, w), without decoding."""
    return images.encoded_size(self._record(index)[self._open()[1]])

  def _open(self) -> tuple[Any, str]:
    """The records, and the key of the picture whose header tells the size."""
    if self._opened is None:
      with places.reading(self._folder):
        builder = tfds.builder_from_directory(self._folder)
        pictures = [key for key, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
        decoders = {key: tfds.decode.SkipDecoding() for key in pictures}
        records = builder.as_data_source(split=self._split, decoders=decoders)
        len(records)  # opens the files
      # A mask is a smaller file than its picture.
      self._opened = records, "label" if "label" in pictures else "image"
    return self._opened

  def _record(self, index: int) -> Mapping[str, Any]:
    records = self._open()[0]
    if not 0 <= index < len(records):
      raise IndexError(f"index {index} is outside the {len(records)} examples of split {self._split!r}")
    try:
      return records[index]
    # Which error a damaged file gives depends on where it is damaged: RuntimeError, ValueError, DecodeError.
    except Exception as error:
      raise DataError(
        f"record {index} of {self._shard(index)} cannot be read ({images.one_line(error)}); delete"
        f" {self._folder} and it is prepared again"
      ) from error

  def _shard(self, index: int) -> str:
    """The file that holds a record."""
    info = tfds.builder_from_directory(self._folder).info.splits[self._split]
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
      if index < length:
        return os.fspath(path)
      index -= length
    return self._folder


def open_split(original: Original, split: str, *, data_dir: str) -> RecordSource:
  """A split, prepared first if it is not yet.

  Prepared data lies in DATA_DIR/NAME-FINGERPRINT/NAME/VERSION, so that it never stands
  in for another source folder, or for another state of this one. Without a source
  folder the only prepared copy below `data_dir` is read (DATA_DIR/NAME/VERSION,
  TFDS's own layout, counts too).

  Raises:
    DataError: no such split, bad files, or nothing prepared and no source folder.
  """
  _check_published(original, split)
  if original.root:
    builder = prepare(original, data_dir=data_dir, split=split)
  else:
    folder = _find_prepared(original.builder, places.data_root(data_dir))
    with places.reading(folder):
      builder = original.builder(data_dir=folder)
  with places.reading(builder.data_path):
    splits = list(builder.info.splits)
  _check_split(split, splits, builder.name, builder.data_path)
  source = RecordSource(os.fspath(builder.data_path), split, original.decode)
  source.check_length()
  if not len(source):
    raise DataError(f"split {split!r} in {builder.data_path} has no records; delete it and prepare it again")
  return source


def prepare(
  original: Original,
  *,
  data_dir: str,
  split: str = "",
  beam_runner: str = "",
  beam_options: Sequence[str] = (),
) -> FileBuilder:
  """Writes the data set unless it is there; an unfinished one lies under another name and is removed.

  Args:
    original: the data set.
    data_dir: see `places.data_root`.
    split: one that the caller is going to read; its absence is said before anything is written.
    beam_runner: "" writes in this process, shard after shard; "DirectRunner", "DataflowRunner" and
      whatever else Apache Beam knows writes the shards in parallel.
    beam_options: Beam's own flags, as ("--direct_num_workers=4", ...).

  Raises:
    DataError: another layout, an empty split, bad files, or a runner that Beam does not know.
    ModuleNotFoundError: `beam_runner` without Beam; the message has the command to install it.
  """
  folder = places.data_root(data_dir) / f"{original.builder.name}-{fingerprint(original)}"
  make = functools.partial(original.builder, data_dir=folder)
  with places.reading(folder):
    builder = make()
    if _is_prepared(builder.data_path):
      return builder
  if not original.root:
    raise DataError(f"{builder.name}: data.manual_dir is empty; set it to the folder of the original files")
  items = find(original, [split] if split else [])
  settings = tfds.download.DownloadConfig(
    try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
  )
  beam = lazy.load("jaxseg.data.beam") if beam_runner else None
  if beam:
    settings = beam.configure(settings, beam_runner, beam_options)
  parent = builder.data_path.parent
  with places.writing(parent), places.locked(parent):
    if not _is_prepared(builder.data_path):  # else another process did it while this one waited
      # Without a lock the leftover may be what another host is writing now.
      for leftover in () if files.is_remote(os.fspath(parent)) else parent.glob("incomplete.*"):
        leftover.rmtree()
      counts = ", ".join(f"{len(members):,} {known}" for known, members in items.items())
      print(f"preparing {builder.name} ({counts} {builder.unit}) in {builder.data_path}", flush=True)
      progress = None if beam else Progress(sum(map(len, items.values())))
      splits = {known: _shards(original.load, members, progress) for known, members in items.items()}
      tfds.disable_progress_bar()
      with contextlib.ExitStack() as stack:
        # TFDS announces a download that does not happen.
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if beam:
          stack.enter_context(beam.plain_errors())
        if progress:
          stack.enter_context(progress)
        try:
          make(splits=splits).download_and_prepare(download_config=settings)
        except FileExistsError:  # on an object store another host was faster
          if not _is_prepared(builder.data_path):
            raise
  return make()  # anew: a builder reads the facts of its data when it is made


def _shards(load: Load, items: Sequence[Any], progress: Progress | None) -> list[_Shard]:
  some = items[:: max(len(items) // _SAMPLE, 1)]
  mean = sum(files.size(path) for item in some for path in item.paths) / len(some)
  size = max(int(_SHARD_BYTES // max(mean, 1)), 1)
  return [_Shard(load, items[i : i + size], progress) for i in range(0, len(items), size)]


def find(original: Original, wanted: Sequence[str]) -> dict[str, list[Any]]:
  """Split → items of all splits, none of which is empty, `wanted` among them.

  Raises:
    DataError: another layout, an empty split, a wanted one that is not there.
  """
  items = original.find()
  check_splits(original, wanted, items)
  return items


def check_splits(original: Original, wanted: Sequence[str], items: Mapping[str, Sequence[Any]]) -> None:
  """Raises DataError where a split is empty, or a wanted one is not there."""
  for split in wanted:
    _check_published(original, split)
  name = original.builder.name
  for known, members in items.items():
    if not members:
      raise DataError(f"{name}: split {known!r} is empty; put at least one picture and its label there")
  for split in wanted:
    _check_split(split, items, name, original.root)


def _check_published(original: Original, split: str) -> None:
  if split in original.absent:
    raise DataError(f"{original.builder.name} has no split {split!r}: {original.absent[split]}")


def _check_split(split: str, splits: Iterable[str], name: str, where: epath.PathLike) -> None:
  if split not in splits:
    raise DataError(f"{name} has no split {split!r}; it has {', '.join(sorted(splits))} (in {where})")


def _is_prepared(folder: epath.Path) -> bool:
  # TFDS renames a finished folder into place; this file is in every finished one.
  return (folder / "dataset_info.json").exists()


def _find_prepared(builder: type[FileBuilder], root: epath.Path) -> epath.Path:
  name, version = builder.name, str(builder.VERSION)
  candidates = [root, *sorted(root.glob(f"{name}-*"))]
  found = [path for path in candidates if _is_prepared(path / name / version)]
  if len(found) != 1:
    state = f"{len(found)} prepared copies of {name}" if found else f"no prepared {name}"
    raise DataError(f"{root} holds {state}; set data.manual_dir to the folder of the original files")
  return found[0]
