"""PyTorch's files, without PyTorch: the zip format (1.6 and later), the older one, and plain pickles.

Zip: `NAME/data.pkl` refers to the storages `NAME/data/KEY`; `NAME/byteorder` tells their
byte order. Older: four pickles (magic number, version, system, content), a pickled list
of storage keys, then for each its length (int64) and values, little-endian. A plain
pickle of NumPy arrays (PaddlePaddle's .pdparams) is read too.
"""

import contextlib
import functools
import io
import os
import pathlib
import pickle
import zipfile
from typing import Any

from jaxseg.errors import UserError
from jaxseg.pretrained.readers import unpickle
from jaxseg.pretrained.readers.unpickle import NumpyArray, Storage, Tensor
from jaxseg.pretrained.weights import Weights, as_mapping, collect, training_meta, unwrap

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


def read(path: pathlib.Path) -> Weights:
  """The state dict of the file; optimizer state and other content beside it is left unread.

  Raises:
    UserError: a damaged file, a TorchScript program, or content without a state dict.
  """
  with contextlib.ExitStack() as opened:
    try:
      content = _read_zip(path, opened) if zipfile.is_zipfile(path) else _read_stream(path, opened)
    except _NotWeightsError:
      raise
    except Exception as error:  # A hostile or damaged pickle can raise anything at all.
      raise UserError(f"{path} is cut short or damaged ({_words(error)}); download it again") from None
    values = {}
    for name, value in unwrap(content, _is_tensor, path).items():
      try:
        values[name] = value.array() if _is_tensor(value) else value
      except Exception as error:
        raise UserError(f"{path} is damaged at {name!r} ({_words(error)}); download it again") from None
  return collect(values, path, meta=training_meta(content))


class _NotWeightsError(ValueError):
  """A sound file of another kind."""


def _is_tensor(value: Any) -> bool:
  return isinstance(value, Tensor | NumpyArray)


def _words(error: Exception) -> str:
  return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _read_zip(path: pathlib.Path, opened: contextlib.ExitStack) -> Any:
  archive = opened.enter_context(zipfile.ZipFile(path))
  names = set(archive.namelist())
  pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise _NotWeightsError(f"{path} is a zip archive without PyTorch's data.pkl; unpack it first")
  root = pickles[0].removesuffix("data.pkl")
  if f"{root}constants.pkl" in names:
    raise _NotWeightsError(
      f"{path} is a TorchScript program, which is never run; save its state_dict() instead"
    )
  order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"

  @functools.cache
  def values(key: str) -> bytes:
    return archive.read(f"{root}data/{key}")

  def persistent_load(pid):
    kind, dtype, key, *_ = pid
    if kind != "storage" or f"{root}data/{key}" not in names:
      raise UserError(f"storage {key!r} is missing")
    return Storage(dtype.dtype, functools.partial(values, str(key)), order.strip() == b"little")

  return unpickle.load(io.BytesIO(archive.read(pickles[0])), persistent_load=persistent_load)


def _read_stream(path: pathlib.Path, opened: contextlib.ExitStack) -> Any:
  file = opened.enter_context(path.open("rb"))
  first = unpickle.load(file)
  if as_mapping(first):
    return first
  if first != _MAGIC:
    raise _NotWeightsError(f"{path} is a pickle of a {type(first).__name__}, not a PyTorch file of weights")
  version = unpickle.load(file)
  if version != _VERSION:
    raise _NotWeightsError(f"{path} has PyTorch file version {version!r}, known is {_VERSION}")
  unpickle.load(file)  # the writer's word sizes, which the storages do not depend on
  places: dict[str, tuple[int, int]] = {}  # key → (offset, bytes), filled in after the content
  sizes: dict[str, int] = {}

  @functools.cache
  def values(key: str) -> memoryview:
    offset, length = places[key]
    file.seek(offset)
    return memoryview(_exactly(file, length))

  def window(key: str, start: int, stop: int | None) -> memoryview:
    return values(key)[start:stop]

  def persistent_load(pid):
    if pid[0] != "storage":
      return pid[1]  # ("module", class, file, source): a class with its source text
    _, dtype, key, _, _, *view = pid
    sizes.setdefault(key, dtype.dtype.itemsize)
    start, stop = 0, None
    if view and view[0] is not None:  # a storage that is itself a window into another
      _, start, count = view[0]
      start, stop = start * dtype.dtype.itemsize, (start + count) * dtype.dtype.itemsize
    return Storage(dtype.dtype, functools.partial(window, key, start, stop))

  content = unpickle.load(file, persistent_load=persistent_load)
  for key in unpickle.load(file):
    length = int.from_bytes(_exactly(file, 8), "little", signed=True)
    places[key] = (file.tell(), length * sizes[key])
    file.seek(length * sizes[key], io.SEEK_CUR)
  return content


def _exactly(file, length: int) -> bytes:
  # A damaged length must not become an allocation.
  room = os.fstat(file.fileno()).st_size - file.tell()
  data = file.read(length) if 0 <= length <= room else b""
  if len(data) != length:
    raise pickle.UnpicklingError("the values end too early")
  return data
