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
import zipfile
from typing import Any

from jaxseg.errors import UserError
from jaxseg.pretrained.readers import archive as archives
from jaxseg.pretrained.readers import unpickle
from jaxseg.pretrained.readers.unpickle import NumpyArray, Storage, Tensor
from jaxseg.pretrained.untrusted import shown
from jaxseg.pretrained.weights import Weights, as_mapping, collect, training_meta, unwrap

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


def read(path: pathlib.Path) -> Weights:
  """The state dict of the file; optimizer state and other content beside it is left unread.

  Raises:
    UserError: a TorchScript program, or content without a state dict.
  """
  with contextlib.ExitStack() as opened:
    content = _read_zip(path, opened) if zipfile.is_zipfile(path) else _read_stream(path, opened)
    found, average = unwrap(content, _is_tensor, path)
    # Views share and repeat their storage's values; all together they may not be more than the file.
    room = path.stat().st_size + 65536
    values = {}
    for name, value in found.items():
      if _is_tensor(value):
        try:
          room -= value.size
          value = value.array() if room >= 0 else value
        except Exception as error:
          raise UserError(
            f"{path} is damaged at '{shown(name)}' ({_words(error)}); download it again"
          ) from error
        if room < 0:
          raise UserError(f"{path} is damaged at '{shown(name)}': its tensors have more values than the file")
      values[name] = value
    meta = training_meta(content)
    if average:
      meta.assumed = {"weights": f"the moving average that the file keeps beside the last ones, {average}"}
    return collect(values, path, meta=meta)


def _is_tensor(value: Any) -> bool:
  return isinstance(value, Tensor) or (isinstance(value, NumpyArray) and value.is_plain)


def _words(error: Exception) -> str:
  return shown(str(error), 160) if isinstance(error, UserError) else type(error).__name__


def _read_zip(path: pathlib.Path, opened: contextlib.ExitStack) -> Any:
  archive = opened.enter_context(archives.Archive(path, stored_only=True))
  pickles = [name for name in archive.names if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise UserError(f"{path} is a zip archive without PyTorch's data.pkl; unpack it first")
  root = pickles[0].removesuffix("data.pkl")
  if f"{root}constants.pkl" in archive.names:
    raise UserError(f"{path} is a TorchScript program, which is never run; save its state_dict() instead")
  order = archive.read(f"{root}byteorder").strip() if f"{root}byteorder" in archive.names else b"little"
  if order not in (b"little", b"big"):
    raise UserError(f"{path} states the byte order '{shown(repr(order))}', expected little or big")

  @functools.cache
  def values(key: str) -> bytes:
    return archive.read(f"{root}data/{key}")

  def persistent_load(pid):
    kind, dtype, key, *_ = pid
    if kind != "storage" or not isinstance(key, str) or f"{root}data/{key}" not in archive.names:
      raise UserError(f"{path} has no storage '{shown(key)}'; download it again")
    return Storage(functools.partial(values, key), dtype.dtype, order == b"little")

  return unpickle.load(io.BytesIO(archive.read(pickles[0])), persistent_load=persistent_load)


def _read_stream(path: pathlib.Path, opened: contextlib.ExitStack) -> Any:
  file = opened.enter_context(path.open("rb"))
  first = unpickle.load(file)
  if as_mapping(first):
    return first
  if type(first) is not int or first != _MAGIC:
    raise UserError(f"{path} is a pickle of a {type(first).__name__}, not a PyTorch file of weights")
  version = unpickle.load(file)
  if type(version) is not int or version != _VERSION:
    raise UserError(f"{path} has an unknown PyTorch file version, known is {_VERSION}")
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
    if not isinstance(key, str):
      raise UserError(f"{path} has a storage without a name; download it again")
    sizes.setdefault(key, dtype.dtype.itemsize)
    start, stop = 0, None
    if view and view[0] is not None:  # a storage that is itself a window into another
      _, start, count = view[0]
      start, stop = start * dtype.dtype.itemsize, (start + count) * dtype.dtype.itemsize
    return Storage(functools.partial(window, key, start, stop), dtype.dtype)

  content = unpickle.load(file, persistent_load=persistent_load)
  keys = unpickle.load(file)
  for key in keys if isinstance(keys, list) else ():
    length = int.from_bytes(_exactly(file, 8), "little", signed=True) * sizes[key]
    places[key] = (file.tell(), length)
    file.seek(max(length, 0), io.SEEK_CUR)
  return content


def _exactly(file, length: int) -> bytes:
  # A damaged length must not become an allocation.
  room = os.fstat(file.fileno()).st_size - file.tell()
  data = file.read(length) if 0 <= length <= room else b""
  if len(data) != length:
    raise EOFError("the values end too early")
  return data
