"""A pickle read as data: tensors and plain containers come out, no code of the file runs.

A pickle names functions and classes to call. Here a name means one of a fixed table of
functions that only describe arrays, and every other name means an inert placeholder
that swallows whatever is done to it (an mmengine HistoryBuffer, an argparse.Namespace,
an optimizer). Nothing is imported, looked up or called by the file's wish.
"""

import dataclasses
import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.readers.dtypes import TORCH, TORCH_STORAGE

_NUMPY = (
  "numpy",
  "numpy.core.multiarray",
  "numpy._core.multiarray",
  "numpy.core.numeric",
  "numpy._core.numeric",
)


class Placeholder:
  """Stands for an object of a class that is not admitted; `kind` is the class's name.

  Keeps the entries of dict-like objects, so that a state dict of some dict subclass is still read.
  """

  kind = "object"

  def __new__(cls, *args, **kwargs):
    self = object.__new__(cls)
    self.entries = {}
    return self

  def __init__(self, *args, **kwargs):
    pass

  def __call__(self, *args, **kwargs):
    return type(self)()

  def __setitem__(self, key, value):
    self.entries[key] = value

  def __setstate__(self, state):
    pass

  def append(self, value):
    """Swallows a list-like object's item."""

  def extend(self, values):
    """Swallows a list-like object's items."""

  def add(self, value):
    """Swallows a set-like object's item."""


@dataclasses.dataclass(frozen=True)
class Dtype:
  """A torch element type or storage class."""

  dtype: np.dtype

  def __call__(self, *args):
    raise pickle.UnpicklingError("a storage class is called, which tensor files do not do")


@dataclasses.dataclass(frozen=True)
class Storage:
  """A flat run of values: `load()` gives its bytes when a tensor is wanted."""

  dtype: np.dtype
  load: Callable[[], memoryview | bytes]
  little_endian: bool = True


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A strided window into a storage; offset and strides count elements."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]

  def array(self) -> np.ndarray:
    """A read-only view of the values; bounds are checked, so a file cannot reach outside its storage."""
    numbers = (self.offset, *self.shape, *self.stride)
    if len(self.shape) != len(self.stride) or not all(type(n) is int and n >= 0 for n in numbers):
      raise UserError(f"a tensor has impossible shape {self.shape} and strides {self.stride}")
    if math.prod(self.shape) == 0:
      return np.zeros(self.shape, self.dtype)
    flat = np.frombuffer(self.storage.load(), self.dtype)
    if not self.storage.little_endian:
      word = self.dtype.itemsize // (2 if self.dtype.kind == "c" else 1)
      flat = flat.view(f"u{word}").byteswap().view(self.dtype)
    last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
    if last >= len(flat):
      raise UserError(f"a tensor of shape {self.shape} ends at value {last} of a storage of {len(flat)}")
    strides = tuple(s * flat.itemsize for s in self.stride)
    return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


class NumpyArray:
  """A pickled `numpy.ndarray`; its state is (version, shape, dtype, Fortran order, bytes)."""

  def __init__(self, *state):
    self.state = (1, *state) if state else None

  def __setstate__(self, state):
    self.state = state

  def array(self) -> np.ndarray:
    _, shape, dtype, fortran, data = self.state
    if not isinstance(dtype, NumpyDtype) or dtype.numpy is None or not isinstance(data, bytes | bytearray):
      raise UserError("an array holds Python objects, which are never unpickled")
    return np.frombuffer(data, dtype.numpy).reshape(shape, order="F" if fortran else "C")


class NumpyDtype:
  """A pickled `numpy.dtype`; `numpy` is None for anything but plain numbers."""

  def __init__(self, code="", *_):
    plain = isinstance(code, str) and re.fullmatch(r"[biufc][0-9]{1,2}", code)
    self.numpy = np.dtype(code) if plain else None

  def __setstate__(self, state):
    if self.numpy is not None and state[1] in ("<", ">"):
      self.numpy = self.numpy.newbyteorder(state[1])


def load(file: io.BufferedIOBase, *, persistent_load: Callable[[Any], Any] | None = None) -> Any:
  """One pickle from `file`, which is left at its end.

  Args:
    file: open at the pickle.
    persistent_load: what to put in place of a reference to something outside the pickle.
  """
  # latin1 lets NumPy arrays pickled by Python 2 keep their bytes; ASCII names are unchanged.
  unpickler = _Unpickler(_Bounded(file), encoding="latin1")
  unpickler.outside = persistent_load
  return unpickler.load()


# The one written in Python: in a damaged file, one wrong byte makes the C one allocate 64 GB
# for its memo. A file of weights has some thousand opcodes, so speed is no question.
class _Unpickler(pickle._Unpickler):
  outside: Callable[[Any], Any] | None = None

  def __init__(self, file, *, encoding):
    super().__init__(file, encoding=encoding)
    # Made anew for each file: a file may set attributes on what it is given.
    self._admitted = _admitted()

  def find_class(self, module, name):
    if (module, name) in self._admitted:
      return self._admitted[module, name]
    if module == "torch" and name in TORCH:
      return Dtype(np.dtype(TORCH[name]))
    if module in ("torch", "torch.cuda", "torch.storage") and name.removesuffix("Storage") in TORCH_STORAGE:
      return Dtype(np.dtype(TORCH_STORAGE[name.removesuffix("Storage")]))
    return type("Placeholder", (Placeholder,), {"kind": f"{module}.{name}"})

  def persistent_load(self, pid):
    if self.outside is None:
      raise pickle.UnpicklingError("a reference to outside data in a plain pickle")
    return self.outside(pid)

  def load_bytearray8(self):
    """The original makes room for whatever length the file states before it reads."""
    length = int.from_bytes(self.read(8), "little")
    self.append(bytearray(self.read(length)))

  dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: load_bytearray8}


class _Bounded:
  """A file whose reads end with it, so that a damaged length is no allocation."""

  def __init__(self, file: io.BufferedIOBase):
    self._file = file
    here = file.tell()
    self._end = file.seek(0, io.SEEK_END)
    file.seek(here)

  def read(self, n: int) -> bytes:
    return self._file.read(max(0, min(n, self._end - self._file.tell())))

  def readline(self) -> bytes:
    return self._file.readline()


def _admitted() -> Mapping[tuple[str, str], Any]:
  """(module, name) → what to use for it; closures, so that nothing is shared between files."""

  def tensor(storage, offset, shape, stride, *_):
    return Tensor(storage, storage.dtype, offset, tuple(shape), tuple(stride))

  def typed_tensor(storage, offset, shape, stride, grad, hooks, dtype, *_):
    return Tensor(storage, dtype.dtype, offset, tuple(shape), tuple(stride))

  def first(value, *_):
    return value

  def subclass_tensor(rebuild, kind, args, *_):
    return rebuild(*args)

  def as_tuple(values=()):
    return tuple(values)

  def as_dict(*_):
    return {}

  def as_bytes(text, *_):
    return text.encode("latin1")

  def numpy_array(*_):
    return NumpyArray()

  def numpy_from_buffer(data, dtype, shape, order="C"):
    return NumpyArray(shape, dtype, order == "F", bytes(data))

  def numpy_scalar(dtype, data=b""):
    return NumpyArray((), dtype, False, data)

  def empty_array(*_):
    return NumpyArray()

  table = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): as_dict,
    ("_codecs", "encode"): as_bytes,
    ("torch", "Size"): as_tuple,
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_tensor_v3"): typed_tensor,
    ("torch._utils", "_rebuild_parameter"): first,
    ("torch._utils", "_rebuild_parameter_with_state"): first,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): first,
    ("torch._utils", "_rebuild_xla_tensor"): first,
    ("torch._tensor", "_rebuild_from_type_v2"): subclass_tensor,
  }
  for module in ("builtins", "__builtin__"):
    table |= {(module, kind.__name__): kind for kind in (set, frozenset, list, tuple, dict, complex, slice)}
  for module in _NUMPY:
    table[module, "_reconstruct"] = numpy_array
    table[module, "_frombuffer"] = numpy_from_buffer
    table[module, "scalar"] = numpy_scalar
    table[module, "ndarray"] = empty_array
    table[module, "dtype"] = type("dtype", (NumpyDtype,), {})
  return table
