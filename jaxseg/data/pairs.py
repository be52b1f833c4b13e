"""Datasets that are pairs of files, a picture and a mask: preparing them with TFDS, reading them back.

A dataset is a subclass of `PairBuilder` that says where its pairs lie and what its ids
mean. Bytes of pictures and masks are stored as they are, in ArrayRecord files; raw ids
become train ids when a mask is read. Neither direction needs TensorFlow.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Int

from jaxseg.data import images
from jaxseg.data.source import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Where prepared data goes when `data_dir` is "".
DATA_DIR_VARIABLE = "JAXSEG_DATA_DIR"
DEFAULT_DATA_DIR = "~/.cache/jaxseg/datasets"

_UNDECODED = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}


class Pair(NamedTuple):
  """One example: `id` is unique in its split."""

  id: str
  image: epath.Path
  mask: epath.Path


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TFDS builder over (picture, mask) files; a dataset sets `name` and `VERSION`.

  `pairs` is split → pairs and `table` raw id → train id (`images.label_table`); a
  builder that only reads what is prepared needs neither.
  """

  VERSION = tfds.core.Version("1.0.0")
  # Nothing is downloaded, so TFDS has no checksum file to look for beside the code
  # (and its search imports a package that TFDS does not install).
  code_path = None

  def __init__(
    self,
    *,
    data_dir: epath.PathLike,
    pairs: dict[str, list[Pair]] | None = None,
    table: Int[np.ndarray, "65536"] | None = None,
  ):
    self.pairs = pairs or {}
    self.table = table
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.Image(shape=(None, None, 1)),
          "id": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,  # the source's order is kept; the pipeline shuffles
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterable]:
    return {split: self._generate_examples(members) for split, members in self.pairs.items()}

  def _generate_examples(self, pairs: list[Pair]) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, pair in enumerate(pairs):
      image, mask = pair.image.read_bytes(), pair.mask.read_bytes()
      images.check_pair(
        image,
        mask,
        image_path=os.fspath(pair.image),
        mask_path=os.fspath(pair.mask),
        table=self.table,
      )
      yield key, {"image": image, "label": mask, "id": pair.id}  # bytes are stored unchanged


class PairSource:
  """One prepared split; see `jaxseg.data.source.Source`."""

  def __init__(self, records: Any, table: Int[np.ndarray, "65536"], where: str):
    self._records = records
    self._table = table.astype(np.uint8)  # ids were checked when they were stored: no -1 is left
    if not len(records):
      raise DataError(f"{where} has no records; delete it and prepare it again")

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records[index]
    return {
      "image": images.decode_image(record["image"]),
      "label": self._table[images.decode_mask(record["label"])],
      "id": record["id"].decode(),
    }

  def size(self, index: int) -> tuple[int, int]:
    """(h, w), from the header of the mask, which is the smaller file."""
    return images.encoded_size(self._records[index]["label"])


def list_pairs(
  root: epath.Path, image_dir: str, mask_dir: str, *, stems: list[str] | None = None
) -> list[Pair]:
  """The pairs root/image_dir/NAME.{png,jpg,jpeg} and root/mask_dir/NAME.png, in `stems`' order or sorted.

  Raises:
    DataError: a listed picture, or a picture's mask, is missing; two pictures share a name.
  """
  names = sorted(p.name for p in (root / image_dir).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
  by_stem: dict[str, str] = {}
  for name in names:
    stem = os.path.splitext(name)[0]
    if stem in by_stem:
      raise DataError(f"{root / image_dir} has {by_stem[stem]} and {name}; one picture a name, remove one")
    by_stem[stem] = name
  masks = {p.name for p in (root / mask_dir).iterdir()}
  pairs = []
  for stem in by_stem if stems is None else stems:
    if stem not in by_stem:
      raise DataError(f"image {root / image_dir / stem} (.png, .jpg or .jpeg) is listed but missing")
    if f"{stem}.png" not in masks:
      raise DataError(
        f"mask {root / mask_dir / (stem + '.png')} of image {root / image_dir / by_stem[stem]} is missing"
      )
    pairs.append(Pair(stem, root / image_dir / by_stem[stem], root / mask_dir / f"{stem}.png"))
  return pairs


def require(root: epath.Path, paths: Iterable[str], *, name: str, layout: str) -> None:
  """Checks that `root` looks like `layout`.

  Raises:
    DataError: the first of `paths` that does not exist, with the whole layout.
  """
  for path in ("", *paths):
    where = root / path if path else root
    if not where.exists():
      raise DataError(f"{name}: {where} does not exist; data.manual_dir must be a folder with\n{layout}")


def fingerprint(pairs: dict[str, list[Pair]], table: Int[np.ndarray, "65536"]) -> str:
  """16 hex digits that change with any file's name, size or time, the splits, or the label map."""
  digest = hashlib.sha256(table.tobytes())
  for split, members in sorted(pairs.items()):
    for pair in members:
      digest.update(repr((split, pair.id, _state(pair.image), _state(pair.mask))).encode())
  return digest.hexdigest()[:16]


def _state(path: epath.Path) -> tuple[str, int, int]:
  name = os.fspath(path)
  if "://" in name:
    remote = path.stat()
    return name, remote.length, remote.mtime
  local = os.stat(name)  # nanoseconds, where epath gives seconds
  return name, local.st_size, local.st_mtime_ns


def data_root(data_dir: str) -> epath.Path:
  """`data_dir`, else $JAXSEG_DATA_DIR, else ~/.cache/jaxseg/datasets; gs:// paths work."""
  return epath.Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR).expanduser()


def open_pairs(
  builder_class: type[PairBuilder],
  split: str,
  *,
  data_dir: str,
  pairs: dict[str, list[Pair]] | None,
  table: Int[np.ndarray, "65536"],
) -> PairSource:
  """The split, prepared first if it is not yet.

  Prepared data lies in DATA_DIR/NAME-FINGERPRINT/NAME/VERSION, so that it never stands
  in for another source folder, or for another state of this one. With `pairs=None`
  there is no source folder and the only prepared copy below `data_dir` is read
  (DATA_DIR/NAME/VERSION, TFDS's own layout, counts too).

  Raises:
    DataError: no such split, bad files, or nothing prepared and no source folder.
  """
  root, name = data_root(data_dir), builder_class.name
  if pairs is None:
    builder = builder_class(data_dir=_find_prepared(builder_class, root))
  else:
    for known, members in pairs.items():
      if not members:
        raise DataError(f"{name}: split {known!r} is empty; put at least one picture and its mask there")
    _check_split(split, pairs, name)
    folder = root / f"{name}-{fingerprint(pairs, table)}"
    _prepare(builder_class(data_dir=folder, pairs=pairs, table=table))
    builder = builder_class(data_dir=folder)  # anew: a builder reads the facts of its data when it is made
  _check_split(split, builder.info.splits, f"{name} prepared in {builder.data_path}")
  records = builder.as_data_source(split=split, decoders=_UNDECODED)
  return PairSource(records, table, f"split {split!r} in {builder.data_path}")


def _check_split(split: str, splits: Iterable[str], where: str) -> None:
  if split not in splits:
    raise DataError(f"{where} has no split {split!r}; it has {', '.join(sorted(splits))}")


def _is_prepared(folder: epath.Path) -> bool:
  # TFDS renames a finished folder into place; this file is in every finished one.
  return (folder / "dataset_info.json").exists()


def _find_prepared(builder_class: type[PairBuilder], root: epath.Path) -> epath.Path:
  name, version = builder_class.name, str(builder_class.VERSION)
  candidates = [root, *sorted(root.glob(f"{name}-*"))]
  found = [path for path in candidates if _is_prepared(path / name / version)]
  if len(found) != 1:
    state = f"{len(found)} prepared copies of {name}" if found else f"no prepared {name}"
    raise DataError(f"{root} holds {state}; set data.manual_dir to the folder of the original files")
  return found[0]


def _prepare(builder: PairBuilder) -> None:
  """Writes the dataset unless it is there. An unfinished one lies under another name and is removed."""
  if _is_prepared(builder.data_path):
    return
  parent = builder.data_path.parent
  with _lock(parent):
    if _is_prepared(builder.data_path):  # another process did it while this one waited
      return
    for leftover in parent.glob("incomplete.*"):
      leftover.rmtree()
    counts = ", ".join(f"{len(members)} {split}" for split, members in builder.pairs.items())
    print(f"preparing {builder.name} ({counts} pairs) in {builder.data_path}", flush=True)
    settings = tfds.download.DownloadConfig(
      try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
    )
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that does not happen
      builder.download_and_prepare(download_config=settings)


@contextlib.contextmanager
def _lock(folder: epath.Path) -> Iterator[None]:
  """Holds the folder against other processes of this machine.

  Object stores have no locks. There each writer fills its own temporary folder, and
  one of the finished ones takes the final name.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = os.fspath(folder / ".lock")
  if "://" in path:
    yield
    return
  import fcntl  # POSIX only, like the TPU hosts; not needed for reading

  with open(path, "w") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
