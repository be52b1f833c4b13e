"""A pickle read as data: tensors and plain containers come out, no code of the file runs.

A pickle is a program that builds containers and calls what it names. `pickletools.genops`
takes it apart; the opcodes are carried out here, on plain dicts, lists and tuples. A name
means one of a fixed table of functions that only describe arrays, and every other name an
inert placeholder (an mmengine HistoryBuffer, an argparse.Namespace, an optimizer): nothing
is imported or looked up by the file's wish. What a program of a few bytes can blow up is
bounded: opcodes, copies, and keys, which have to be plain (a nested tuple as a key takes
exponential time to hash).
"""

import dataclasses
import io
import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.readers.dtypes import TORCH, TORCH_STORAGE
from jaxseg.pretrained.untrusted import shown

# Published checkpoints with optimizer state and logs have some ten thousand.
_MAX_OPCODES = 500_000
_NUMPY = re.compile(r"numpy(\._?core\.(multiarray|numeric))?")
# What may copy what it is given is charged for its length.
_COPIES = {"tuple", "list", "set", "frozenset", "bytearray", "Size"}


class _BadPickleError(Exception):
  """A pickle that no writer of weights makes."""


@dataclasses.dataclass(eq=False)
class Placeholder:
  """Stands for a name that is not admitted, or an object made by it; `kind` is the name.

  Keeps the entries of dict-like objects, so that a state dict of some dict subclass is still read.
  """

  kind: str
  entries: dict[Any, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Dtype:
  """A torch element type or storage class."""

  dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """A flat run of values: `load()` gives its bytes when a tensor is wanted."""

  load: Callable[[], memoryview | bytes]
  dtype: np.dtype
  little_endian: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A strided window into a storage; offset and strides count elements.

  `negative` and `conjugate` are torch's lazy bits: the view has other values than its storage.
  """

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]
  negative: bool = False
  conjugate: bool = False

  @property
  def size(self) -> int:
    """The number of elements; bounds are checked, so a file cannot reach outside its storage."""
    numbers = [self.offset, *self.shape, *self.stride] if len(self.shape) == len(self.stride) <= 32 else [-1]
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
      raise UserError("a tensor has an impossible shape or strides")
    return math.prod(self.shape)

  def array(self) -> np.ndarray:
    """A read-only view of the values."""
    if self.size == 0:
      return np.zeros(self.shape, self.dtype)
    flat = np.frombuffer(self.storage.load(), self.dtype)
    last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
    if last >= len(flat):
      raise UserError(f"a tensor of shape {self.shape} ends at value {last} of a storage of {len(flat)}")
    strides = tuple(s * flat.itemsize for s in self.stride)
    view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
    if not self.storage.little_endian:
      word = self.dtype.itemsize // (2 if self.dtype.kind == "c" else 1)
      shape, view = view.shape, np.ascontiguousarray(view).reshape(-1)
      view = view.view(f"u{word}").byteswap().view(self.dtype).reshape(shape)
    view = view.conj() if self.conjugate else view
    return -view if self.negative else view


class NumpyArray:
  """A pickled `numpy.ndarray`; its state is (version, shape, dtype, Fortran order, bytes)."""

  def __init__(self, *state):
    self.state = (1, *state) if state else None

  def _parts(self) -> tuple[tuple[int, ...], np.dtype, bool, bytes | bytearray]:
    _, shape, dtype, fortran, data = self.state
    data = data.encode("latin1") if isinstance(data, str) else data  # written by Python 2
    if not isinstance(data, bytes | bytearray) or not all(type(n) is int and n >= 0 for n in shape):
      raise UserError("an array has an impossible shape")
    return tuple(shape), dtype.numpy, bool(fortran), data

  @property
  def is_plain(self) -> bool:
    """Whether it holds numbers, and not Python objects."""
    dtype = self.state[2] if isinstance(self.state, tuple) and len(self.state) == 5 else None
    return isinstance(dtype, NumpyDtype) and dtype.numpy is not None

  @property
  def size(self) -> int:
    return math.prod(self._parts()[0])

  def array(self) -> np.ndarray:
    shape, dtype, fortran, data = self._parts()
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


class NumpyDtype:
  """A pickled `numpy.dtype`; `numpy` is None for anything but plain numbers."""

  def __init__(self, code="", *_):
    plain = isinstance(code, str) and re.fullmatch(r"[biufc][0-9]{1,2}", code)
    self.numpy = np.dtype(code) if plain else None


def load(file: io.BufferedIOBase, *, persistent_load: Callable[[Any], Any] | None = None) -> Any:
  """One pickle from `file`, which is left at its end.

  Args:
    file: open at the pickle.
    persistent_load: what to put in place of a reference to something outside the pickle.
  """
  return _Machine(_Bounded(file), persistent_load).run()


class _Bounded:
  """A file whose reads end with it, so that a damaged length is no allocation."""

  def __init__(self, file: io.BufferedIOBase):
    self._file = file
    start = file.tell()
    self.left = file.seek(0, io.SEEK_END) - start
    file.seek(start)

  def read(self, n: int) -> bytes:
    data = self._file.read(max(0, min(n, self.left)))
    self.left -= len(data)
    return data

  def readline(self) -> bytes:
    line = self._file.readline()
    self.left -= len(line)
    return line


class _Machine:
  """Carries out one pickle's opcodes."""

  def __init__(self, file: _Bounded, outside: Callable[[Any], Any] | None):
    self._file, self._outside = file, outside
    self._stack: list[Any] = []
    self._marks: list[list[Any]] = []
    self._memo: dict[int, Any] = {}
    self._copies = 4 * file.left + 65536  # elements and bytes that copying functions may make

  def run(self) -> Any:
    for count, (opcode, arg, _) in enumerate(pickletools.genops(self._file)):
      if count > _MAX_OPCODES:
        raise _BadPickleError(f"the pickle has over {_MAX_OPCODES} opcodes")
      if opcode.name in _PUSHES:
        self._stack.append(_CONSTANTS.get(opcode.name, arg))
      elif opcode.name in _EMPTY:
        self._stack.append(_EMPTY[opcode.name]())
      elif opcode.name in _MEMO_READS:
        self._stack.append(self._memo[arg])
      elif opcode.name in _MEMO_WRITES:
        self._memo[len(self._memo) if arg is None else arg] = self._stack[-1]
      elif opcode.name == "STOP":
        return self._stack.pop()
      elif opcode.name not in ("PROTO", "FRAME"):
        act = _ACTS.get(opcode.name)
        if act is None:  # the EXT opcodes, out-of-band buffers
          raise _BadPickleError(f"the opcode {opcode.name}, which files of weights do not have")
        act(self, arg)
    raise _BadPickleError("the pickle has no end")

  def _to_mark(self) -> list[Any]:
    items, self._stack = self._stack, self._marks.pop()
    return items

  def _pop(self, n: int) -> list[Any]:
    items = self._stack[-n:]
    if len(items) < n:
      raise _BadPickleError("the stack is empty")
    del self._stack[-n:]
    return items

  def _push_marked(self, make: Callable[[list[Any]], Any]) -> None:
    items = self._to_mark()
    self._stack.append(make(items))

  def _mark(self, _) -> None:
    self._marks.append(self._stack)
    self._stack = []

  def _pop_one(self, _) -> None:
    if self._stack:
      self._stack.pop()
    else:
      self._to_mark()

  def _named(self, name: str) -> None:
    module, _, name = name.partition(" ")
    self._stack.append(find(module, name))

  def _stack_global(self, _) -> None:
    module, name = self._pop(2)
    if not (isinstance(module, str) and isinstance(name, str)):
      raise _BadPickleError("a name that is not text")
    self._stack.append(find(module, name))

  def _call(self, function: Any, args: Any, *_) -> None:
    if not isinstance(args, tuple | list):
      raise _BadPickleError("a call without arguments")
    self._stack.append(self.apply(function, tuple(args)))

  def apply(self, function: Any, args: tuple[Any, ...]) -> Any:
    """What a call means: an array's description, a plain container, or a placeholder."""
    if not isinstance(function, _Function):
      kind = function.kind if isinstance(function, Placeholder) else type(function).__name__
      made = Placeholder(kind)
      if args and isinstance(args[0], dict):  # a Counter, an addict.Dict: dict subclasses made from a dict
        self._charge(args[0])
        made.entries.update(args[0])
      return made
    if function.name in _COPIES and args:
      self._charge(args[0])
    return function.make(self, *args)

  def _charge(self, value: Any) -> None:
    self._copies -= len(value) if hasattr(value, "__len__") else 0
    if self._copies < 0:
      raise _BadPickleError("more is copied than the file is long")

  def _build(self, _) -> None:
    state = self._pop(1)[0]
    target = self._stack[-1]
    if isinstance(target, NumpyArray):
      target.state = state
    elif isinstance(target, NumpyDtype) and target.numpy is not None and state[1] in ("<", ">"):
      target.numpy = target.numpy.newbyteorder(state[1])

  def _add(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if isinstance(target, list):
      target.extend(items)

  def _set(self, items: list[Any]) -> None:
    if len(items) % 2:
      raise _BadPickleError("a key without a value")
    target = self._stack[-1]
    entries = target.entries if isinstance(target, Placeholder) else target
    if isinstance(entries, dict):
      fill(entries, zip(items[::2], items[1::2], strict=True))

  def _refer(self, pid: Any) -> None:
    if self._outside is None:
      raise _BadPickleError("a reference to outside data in a plain pickle")
    self._stack.append(self._outside(pid))


def fill(entries: dict[Any, Any], pairs) -> dict[Any, Any]:
  """Adds the pairs whose keys are plain; others name no tensor, and hashing them may take for ever."""
  for key, value in pairs:
    if isinstance(key, str | bytes | bool | None) or (type(key) is int and abs(key) < 1 << 60):
      entries[key] = value
  return entries


_PUSHES = {
  *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE"),
  *("BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_MEMO_READS = {"GET", "BINGET", "LONG_BINGET"}
_MEMO_WRITES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False}
# Opcode → what it does to the machine, with the opcode's argument.
_ACTS: dict[str, Callable[[_Machine, Any], None]] = {
  "MARK": _Machine._mark,
  "POP": _Machine._pop_one,
  "POP_MARK": lambda m, _: m._to_mark(),
  "DUP": lambda m, _: m._stack.append(m._stack[-1]),
  "GLOBAL": _Machine._named,
  "STACK_GLOBAL": _Machine._stack_global,
  "TUPLE": lambda m, _: m._push_marked(tuple),
  "LIST": lambda m, _: m._push_marked(list),
  "FROZENSET": lambda m, _: m._push_marked(tuple),
  "DICT": lambda m, _: m._push_marked(lambda items: _dict(items[::2], items[1::2])),
  "TUPLE1": lambda m, _: m._stack.append(tuple(m._pop(1))),
  "TUPLE2": lambda m, _: m._stack.append(tuple(m._pop(2))),
  "TUPLE3": lambda m, _: m._stack.append(tuple(m._pop(3))),
  "APPEND": lambda m, _: m._add(m._pop(1)),
  "APPENDS": lambda m, _: m._add(m._to_mark()),
  "ADDITEMS": lambda m, _: m._add(m._to_mark()),
  "SETITEM": lambda m, _: m._set(m._pop(2)),
  "SETITEMS": lambda m, _: m._set(m._to_mark()),
  "REDUCE": lambda m, _: m._call(*m._pop(2)),
  "NEWOBJ": lambda m, _: m._call(*m._pop(2)),
  "NEWOBJ_EX": lambda m, _: m._call(*m._pop(3)),
  "OBJ": lambda m, _: m._push_marked(lambda items: m.apply(items[0], tuple(items[1:]))),
  "INST": lambda m, name: m._push_marked(lambda items: m.apply(find(*name.split(" ", 1)), tuple(items))),
  "BUILD": _Machine._build,
  "PERSID": _Machine._refer,
  "BINPERSID": lambda m, _: m._refer(m._pop(1)[0]),
}


@dataclasses.dataclass(frozen=True)
class _Function:
  """An admitted name: `make(machine, *args)` is what a call of it gives."""

  name: str
  make: Callable[..., Any]


def find(module: str, name: str) -> Any:
  """What a name of the file means here: an admitted function, an element type, or a placeholder."""
  if module in ("builtins", "__builtin__") and name in _BUILTINS:
    return _Function(name, _BUILTINS[name])
  if _NUMPY.fullmatch(module) and name in _ARRAYS:
    return _Function(name, _ARRAYS[name])
  if (module, name) in _TORCH:
    return _Function(name, _TORCH[module, name])
  if module == "torch" and name in TORCH:
    return Dtype(np.dtype(TORCH[name]))
  if module in ("torch", "torch.cuda", "torch.storage") and name.removesuffix("Storage") in TORCH_STORAGE:
    return Dtype(np.dtype(TORCH_STORAGE[name.removesuffix("Storage")]))
  return Placeholder(shown(f"{module}.{name}"))


def _tensor(_, storage, offset, shape, stride, grad=False, hooks=None, metadata=None, *, dtype=None):
  if not isinstance(storage, Storage) or max(len(shape), len(stride)) > 32:
    raise _BadPickleError("a tensor without a storage or shape")
  bits = metadata if isinstance(metadata, dict) else {}
  view = (offset, tuple(shape), tuple(stride), bool(bits.get("neg")), bool(bits.get("conj")))
  return Tensor(storage, dtype or storage.dtype, *view)


def _typed_tensor(_, storage, offset, shape, stride, grad, hooks, dtype, metadata=None):
  return _tensor(_, storage, offset, shape, stride, grad, hooks, metadata, dtype=dtype.dtype)


def _first(_, value, *rest):
  return value


def _dict(keys=(), values=()):
  return fill({}, zip(keys, values, strict=True))


def _dict_of(machine, pairs=(), *_):
  machine._charge(pairs)
  pairs = pairs.items() if isinstance(pairs, dict) else pairs
  return fill({}, ((key, value) for key, value in pairs))


def _encode(machine, text, *_):
  machine._charge(text)
  return text.encode("latin1")


_BUILTINS = {
  **{name: lambda _, values=(): list(values) for name in ("set", "frozenset", "list")},
  "tuple": lambda _, values=(): tuple(values),
  "dict": _dict_of,
  "bytearray": lambda _, values=b"", *rest: bytearray(values if isinstance(values, bytes) else b""),
}
_ARRAYS = {
  "_reconstruct": lambda *_: NumpyArray(),
  "_frombuffer": lambda _, data, dtype, shape, order="C": NumpyArray(shape, dtype, order == "F", data),
  "scalar": lambda _, dtype, data=b"": NumpyArray((), dtype, False, data),
  "ndarray": lambda *_: NumpyArray(),
  "dtype": lambda _, *args: NumpyDtype(*args),
}
_TORCH = {
  ("collections", "OrderedDict"): _dict_of,
  ("collections", "defaultdict"): lambda *_: {},
  ("_codecs", "encode"): _encode,
  ("torch", "Size"): _BUILTINS["tuple"],
  ("torch._utils", "_rebuild_tensor"): _tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
  ("torch._utils", "_rebuild_parameter"): _first,
  ("torch._utils", "_rebuild_parameter_with_state"): _first,
  ("torch._utils", "_rebuild_device_tensor_from_numpy"): _first,
  ("torch._utils", "_rebuild_xla_tensor"): _first,
  ("torch._tensor", "_rebuild_from_type_v2"): lambda m, make, kind, args, *_: m.apply(make, tuple(args)),
}
