# ruff: noqa: E501 (a table: one case a line)
"""Hostile weight files, made by hand: each name says what it tries. Nothing here is a stored binary.

`REFUSED` have to end in a sentence; `READ` hold something odd beside sound weights and have to give
the right values.
"""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import safetensors.numpy

Files = dict[str, bytes]
State = Mapping[str, np.ndarray]
TWICE = b"2\x86"  # DUP, TUPLE2: the top becomes a pair of itself
NESTED = b")" + 60 * TWICE  # 120 bytes of pickle, 2**60 leaves to whoever walks them
DEEP = b")" + 1_000_000 * b"\x85"  # a million tuples of one


def text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
  return f"c{module}\n{attribute}\n".encode()


def program(*parts: bytes) -> bytes:
  return b"\x80\x02" + b"".join(parts) + b"."


def entry(key: bytes, value: bytes = b"N") -> bytes:
  return program(b"}", key, value, b"s")


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
  return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
  return b"\x8b" + struct.pack("<i", 16) + value.to_bytes(16, "little", signed=True)


def numbers(*values: int) -> bytes:
  return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: bytes = text("0"), kind: str = "FloatStorage") -> bytes:
  return b"(" + text("storage") + name("torch", kind) + key + text("cpu") + b"K\x06tQ"


def tensor(
  shape: bytes, stride: bytes, *, offset: int = 0, source: bytes | None = None, more: bytes = b""
) -> bytes:
  parts = (source or storage(), number(offset), shape, stride, b"\x89", b"N", more)
  return call("torch._utils", "_rebuild_tensor_v2", *parts)


def archive(content: bytes, *, order: bytes = b"little", data: bytes = bytes(24), **more: bytes) -> bytes:
  """A PyTorch file of the zip format around a pickle."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as out:
    for member, value in {"data.pkl": content, "byteorder": order, "data/0": data, **more}.items():
      out.writestr(f"a/{member}", value)
  return buffer.getvalue()


def torch_like(state: State, *extra: bytes, wrap: str | None = None) -> bytes:
  """A sound zip file of a state dict, with more entries in its pickle: key, value, key, value, ..."""
  items, files = [], {}
  for i, (key, value) in enumerate(state.items()):
    kind = {"f4": "FloatStorage", "i8": "LongStorage", "i1": "CharStorage", "b1": "BoolStorage"}
    kind |= {"c8": "ComplexFloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage"}
    value = np.ascontiguousarray(value).reshape(value.shape)
    files[f"data/{i}"] = value.tobytes()
    strides = [s // value.itemsize for s in value.strides]
    source = storage(text(str(i)), kind[value.dtype.str[1:]])
    items.append(text(key) + tensor(numbers(*value.shape), numbers(*strides), source=source))
  content = b"}(" + b"".join(items) + b"".join(extra) + b"u"
  content = program(b"}", text(wrap), content, b"s") if wrap else program(content)
  return archive(content, **files)


def torch_members(
  data: bytes, change: Callable[[str, bytes], bytes], *, method: int = zipfile.ZIP_STORED
) -> bytes:
  """A zip file again, with every member changed; checksums are right."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
    for member in old.namelist():
      new.writestr(member, change(member, old.read(member)))
  return buffer.getvalue()


def plain(state: State, **more) -> bytes:
  return pickle.dumps({**{k: np.asarray(v) for k, v in state.items()}, **more}, protocol=2)


def saved(state: State, config: dict | str | None = None) -> bytes:
  text = config if isinstance(config, str) else json.dumps(config)
  return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in state.items()}, {"jaxseg": text})


def header(fields: str | bytes, values: bytes = b"") -> bytes:
  fields = fields.encode() if isinstance(fields, str) else fields
  return struct.pack("<Q", len(fields)) + fields + values


def npz(members: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", method) as out:
    for member, value in members.items():
      out.writestr(member, value)
  return buffer.getvalue()


def npy(description: str, values: bytes = bytes(8)) -> bytes:
  description = description.encode() + b"\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(description)) + description + values


def legacy(content: bytes, keys: bytes, values: bytes) -> bytes:
  magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
  return magic + content + keys + values


def repeated_members(data: bytes) -> bytes:
  """The member data/1 takes the name data/0, in the directory and in its own header."""
  return data.replace(b"a/data/1", b"a/data/0")


def stated_size(data: bytes, size: int) -> bytes:
  """The zip's directory says that every member has `size` bytes."""
  out, at = bytearray(data), 0
  while (at := data.find(b"PK\x01\x02", at)) >= 0:
    out[at + 20 : at + 28] = struct.pack("<II", size, size)
    at += 4
  return bytes(out)


WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net")


def wrapped(depth: int) -> bytes:
  """Dicts in dicts, each under every known wrapper's key: 7**depth ways to walk."""
  inner = b"}q\x00"
  for level in range(1, depth):
    items = b"".join(text(key) + b"h" + bytes([level - 1]) for key in WRAPPERS)
    inner += b"}q" + bytes([level]) + b"(" + items + b"u"
  return program(inner)


def copies(kind: tuple[str, str], count: int) -> bytes:
  """A long list, copied again and again by an admitted function."""
  long = b"](" + b"N" * 20_000 + b"eq\x00"
  return program(long, b"](", count * (name(*kind) + b"h\x00\x85R"), b"e")


def ours(state: State) -> dict[str, np.ndarray]:
  return {f"params/encoder/{k.replace('.', '/')}": v for k, v in state.items()}


def without_values(names) -> bytes:
  fields = {n: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in names}
  return header(json.dumps(fields))


def refused(state: State) -> Files:
  one = {"a": np.ones(6, np.float32)}
  first = next(iter(state))
  variance = next(n for n in state if n.endswith("running_var"))
  changed = lambda n, v: torch_like({**state, n: v})  # noqa: E731
  sound = torch_like(state)
  config = {"jaxseg_version": "1", "model": {"arch": "cgnet_m3n21", "num_classes": 5}}
  model = lambda **fields: saved(one, {**config, "model": {**config["model"], **fields}})  # noqa: E731
  mine = lambda **fields: saved(ours(one), {**config, **fields})  # noqa: E731
  files = {
    "nested key": entry(NESTED),
    "deep key": entry(DEEP),
    "deep value": entry(text("epoch"), DEEP),
    "nested key in a zip": archive(entry(NESTED)),
    "nested storage key": archive(entry(text("a"), tensor(numbers(6), numbers(1), source=storage(NESTED)))),
    "nested shape": archive(entry(text("a"), tensor(NESTED, numbers(1)))),
    "nested keys of the message": program(b"}", number(7), NESTED, b"s"),
    "wrappers in wrappers": wrapped(200),
    "ext1": program(b"}\x82\x01s"),
    "ext4": program(b"}\x84\xff\xff\xff\x7fs"),
    "out of band buffer": b"\x80\x05\x97.",
    "a million digits": entry(b"I" + b"9" * 1_000_000 + b"\n"),
    "a megabyte of integer as key": entry(b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)),
    "300,000 names": program(300_000 * b"cx\ny\n0", b"}"),
    "memo at four billion": program(b"}r\xff\xff\xff\xff"),
    "two million opcodes": program(b"](", 2_000_000 * b"N", b"e"),
    "stated gigabytes of text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "stated gigabytes of bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "no end": b"\x80\x02}}}}",
    "empty stack": b"\x80\x02R.",
    "mark that is not there": b"\x80\x02t.",
    "key without value": program(b"}(" + text("a") + b"u"),
    "call of a text": program(text("os.system"), text("true"), b"\x85R"),
    "copies of a list": copies(("builtins", "list"), 2000),
    "copies of a dict": copies(("collections", "OrderedDict"), 2000),
    "copies of a tuple": copies(("torch", "Size"), 2000),
    "encoded again and again": program(
      text("x" * 500_000), b"q\x000](", 2000 * (name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R"), b"e"
    ),
    "a hundred thousand prefixes": torch_like({"module." * 100_000 + "a": np.ones(1, np.float32)}),
    "one value a billion times": archive(entry(text("a"), tensor(numbers(1 << 30), numbers(0)))),
    "a million values a thousand times": archive(
      program(b"}(", *(text(str(i)) + tensor(numbers(1 << 20), numbers(0)) for i in range(1000)), b"u")
    ),
    "negative stride": archive(entry(text("a"), tensor(numbers(3), numbers(-1), offset=5))),
    "outside its storage": archive(entry(text("a"), tensor(numbers(6), numbers(1), offset=6))),
    "shape beyond 64 bits": archive(entry(text("a"), tensor(numbers(1 << 100), numbers(1)))),
    "sixty dimensions": archive(entry(text("a"), tensor(numbers(*60 * [1]), numbers(*60 * [1])))),
    "shape that is a number": archive(entry(text("a"), tensor(number(6), number(1)))),
    "unknown byte order": archive(entry(text("a"), tensor(numbers(6), numbers(1))), order=b"middle"),
    "storage that is not there": archive(entry(text("a"), tensor(numbers(6), numbers(1), source=storage(text("9"))))),
    "a member twice": repeated_members(torch_like(one | {"b": np.ones(6, np.float32)})),
    "deflated gigabyte": npz({"a/data.pkl": program(b"}"), "a/data/0": bytes(1 << 28)}, method=zipfile.ZIP_DEFLATED),
    "members longer than the file": stated_size(sound, 1 << 31),
    "deflated npz": npz({"a.npy": npy("{'descr':'<f4','fortran_order':False,'shape':(67108864,)}", bytes(1 << 28))},
                        method=zipfile.ZIP_DEFLATED),
    "npz of a trillion": npz({"a.npy": npy("{'descr':'<f4','fortran_order':False,'shape':(1000000000000,)}")}),
    "npz of objects": npz({"a.npy": npy("{'descr':'|O','fortran_order':False,'shape':(1,)}")}),
    "npz with a deep header": npz({"a.npy": npy("(" * 9000)}),
    "npz with code in its header": npz({"a.npy": npy("__import__('os').system('true')")}),
    "TorchScript": archive(program(b"}"), **{"constants.pkl": b""}),
    "header of nine exabytes": struct.pack("<Q", 1 << 63) + b"{",
    "header of 100 MB": struct.pack("<Q", 100 << 20) + b"{" + b" " * 1000,
    "deep header": header('{"a":' + "[" * 100_000),
    "a name twice in the header": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                         '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "overlapping tensors": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                  '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "offsets outside": header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', bytes(4)),
    "unknown element type": header('{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "no values, a billion rows": header('{"a":{"dtype":"F32","shape":[0,1000000000000],"data_offsets":[0,0]}}'),
    "config that is not JSON": saved(ours(one), "{"),
    "config without an end": saved(ours(one), "[" * 200_000),
    "config of a text": saved(ours(one), '"x"'),
    "a billion blocks in the config": mine(model={**config["model"], "encoder": {"num_blocks": [10**9, 10**9]}}),
    "a million rates in the config": mine(model={**config["model"], "decoder": {"rates": [1] * 1_000_000}}),
    "a million convolutions in the config": mine(model={**config["model"], "decoder": {"num_convs": 1_000_000}}),
    "fields that are numbers": mine(model={**config["model"], "encoder": 3}),
    "a model that is a list": mine(model=["cgnet_m3n21"]),
    "unknown model in the config": mine(model={"arch": "\x1b[31mrm -rf\n" * 50}),
    "a million classes": mine(classes=["x"] * 1_000_000),
    "colours out of range": mine(palette=[[1, 2, 1e300]]),
    "NaN in the statistics": mine(preprocess={"mean": [float("nan"), 1, 1], "std": [1, 1, 1]}),
    "negative std": mine(preprocess={"mean": [1, 1, 1], "std": [1, -1, 1]}),
    "licence that is a list": mine(licence=[1]),
    "the config's own model with no weights": model(),
    "one name of block a billion": torch_like({**state, "backbone.level1.999999999.f_loc.weight": state[first]}),
    "3,000 blocks": without_values([f"backbone.level1.{i}.f_loc.weight" for i in range(3000)]),
    "a name of a megabyte": torch_like({"x" * (1 << 20): np.ones(1, np.float32)}),
    "escape codes in a name": torch_like({**state, "backbone.\x1b[2J\nx": np.ones(1, np.float32)}),
    "NaN": changed(first, np.full_like(state[first], np.nan)),
    "infinity": changed(first, np.full_like(state[first], np.inf)),
    "a double beyond float32": changed(first, np.full(state[first].shape, 1e300)),
    "negative variance": changed(variance, -np.ones_like(state[variance])),
    "int8": changed(first, np.ones(state[first].shape, np.int8)),
    "bool": changed(first, np.ones(state[first].shape, bool)),
    "complex": changed(first, np.ones(state[first].shape, np.complex64)),
    "int64": changed(first, np.ones(state[first].shape, np.int64)),
    "uint64": plain({**state, first: np.ones(state[first].shape, np.uint64)}),
    "legacy, negative length": legacy(entry(text("a"), tensor(numbers(6), numbers(1), source=b"(" + text("storage")
                                      + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x06NtQ")),
                                      pickle.dumps(["0"], 2), struct.pack("<q", -6) + bytes(24)),
    "legacy, keys that are a number": legacy(program(b"}"), pickle.dumps(3, 2), b""),
    "legacy, unknown key": legacy(program(b"}"), pickle.dumps(["7"], 2), struct.pack("<q", 1)),
  }  # fmt: skip
  return files


def read(state: State, marker: str) -> Files:
  """Sound weights with something evil or odd beside them."""
  evil = f"open({marker!r}, 'w')"
  beside = {
    "os.system": text("x") + call("os", "system", text(f"touch {marker}")),
    "eval": text("x") + call("builtins", "eval", text(evil)),
    "exec": text("x") + call("builtins", "exec", text(evil)),
    "INST": text("x") + b"(" + text(evil) + b"ibuiltins\nexec\n",
    "OBJ": text("x") + b"(" + name("builtins", "exec") + text(evil) + b"o",
    "dotted name": text("x")
    + text("os")
    + text("path.os.system")
    + b"\x93"
    + text(f"touch {marker}")
    + b"\x85R",
    "state": text("x") + call("collections", "OrderedDict") + b"}" + text("__class__") + text("x") + b"sb",
    "getattr": text("x")
    + call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system")),
    "a nested key beside": NESTED + b"N",
    "numpy objects": text("x")
    + call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("O8")), b"N"),
  }
  files = {key: torch_like(state, value) for key, value in beside.items()}
  files["wrapped six times"] = torch_like({f"module.{k}": v for k, v in state.items()}, wrap="state_dict")
  files["half"] = torch_like(
    {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in state.items()}
  )
  files["npz"] = npz({f"{k}.npy": _npy_of(v) for k, v in state.items()})
  files["deflated npz"] = npz({f"{k}.npy": _npy_of(v) for k, v in state.items()}, method=zipfile.ZIP_DEFLATED)
  files["plain pickle"] = plain(state)
  bf16 = {k: v.astype(ml_dtypes.bfloat16) if v.dtype == np.float32 else v for k, v in state.items()}
  files["bfloat16"] = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in bf16.items()})
  return files


def _npy_of(value: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, np.asarray(value))
  return buffer.getvalue()
