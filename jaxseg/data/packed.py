"""Arrays that no picture format holds, as bytes: NumPy's own format, compressed by zstd."""

import io

import numpy as np
import zstandard
from jaxtyping import Shaped

_MAGIC = b"\x28\xb5\x2f\xfd"  # of zstd
_HEADER = 256  # bytes that surely hold NumPy's header of an array of few axes


def pack(array: Shaped[np.ndarray, "..."]) -> bytes:
  """The bytes of an array."""
  plain = io.BytesIO()
  np.save(plain, array, allow_pickle=False)
  return zstandard.compress(plain.getvalue(), 3)


def is_packed(data: bytes) -> bool:
  """Whether `pack` made these bytes."""
  return data[:4] == _MAGIC


def unpack(data: bytes) -> Shaped[np.ndarray, "..."]:
  """The array again; read-only."""
  plain = zstandard.decompress(data)
  stream = io.BytesIO(plain)
  shape, dtype = _header(stream)
  return np.frombuffer(plain, dtype, offset=stream.tell()).reshape(shape)


def shape(data: bytes) -> tuple[int, ...]:
  """Of the array, without decompressing it."""
  with zstandard.ZstdDecompressor().stream_reader(data) as stream:
    return _header(io.BytesIO(stream.read(_HEADER)))[0]


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
  np.lib.format.read_magic(stream)
  shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
  return shape, dtype
