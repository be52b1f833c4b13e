"""The text of an optimised program (`compiled.as_text()`) → computations, instructions, shapes.

XLA's own summaries cannot be used: its cost analysis counts a loop's body once and believes
what a kernel claims about itself. The text has every shape, loop and replica group.
"""

import dataclasses
import functools
import math
import re

from jaxseg.errors import UserError

_BITS = {
  "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
  "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
  "token": 0, "opaque": 0,
}  # fmt: skip
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+)(?: \(.*\) -> .*)? \{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"\s*(?P<opcode>[a-z][\w\-]*)\(")
_LEAF = re.compile(r"(?P<kind>[a-z]\w*)\[(?P<dims>[\d,<=]*)\](?:\{(?P<layout>[^{}]*)\})?")
# What an attribute's value can be besides a word: braces in braces, [groups,size]<=[devices], axes of a mesh.
_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_IOTA = r"\[[\d,]*\](?:<=\[[\d,]*\])?"
_MESH = r"mesh\[[^\]]*\](?:, device_ids=\((?:[^()]|\([^()]*\))*\))? ?\{[^}]*\}"
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array: element type, dimensions, and where and how it lies.

  Attributes:
    kind: element type, "bf16".
    dims: its dimensions.
    order: dimensions from the fastest varying on; () where the text has no layout.
    tile: the outer tile on the fastest dimensions, slowest first; () where rows are not tiled.
    space: memory space; 0 is the device's main memory, on a TPU 1 is its vector memory.
  """

  kind: str
  dims: tuple[int, ...]
  order: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def elements(self) -> int:
    """How many there are."""
    return math.prod(self.dims)

  @property
  def nbytes(self) -> float:
    """Bytes of the elements, without padding."""
    return self.elements * _bits(self.kind) / 8

  @property
  def padded_bytes(self) -> float:
    """Bytes with every tile filled up, as a TPU stores them."""
    if not self.tile or len(self.tile) > len(self.dims):
      return self.nbytes
    sizes = [self.dims[d] for d in self.order] if self.order else list(reversed(self.dims))
    for i, tile in enumerate(reversed(self.tile)):
      sizes[i] = -(-sizes[i] // tile) * tile
    return math.prod(sizes) * _bits(self.kind) / 8


def _bits(kind: str) -> int:
  if kind in _BITS:
    return _BITS[kind]
  digits = re.match(r"f(\d+)", kind)  # f8e4m3fn and its kin
  return int(digits.group(1)) if digits else 32


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: its own.
    opcode: what it does.
    shapes: leaves of its result.
    operands: names of what it reads.
    attributes: the text after the operands.
    literal: the operands' text where it is no names.
    parts: of an asynchronous start, the leaves of each element of its result: operands, results, contexts.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attributes: str
  literal: str = ""
  parts: tuple[tuple[Shape, ...], ...] = ()

  @property
  def target(self) -> str:
    """What a custom call calls; "" for every other instruction."""
    return self.attribute("custom_call_target").strip('"') if self.opcode == "custom-call" else ""

  def called(self, key: str) -> tuple[str, ...]:
    """Names of the computations in attribute `key`: `calls=%a`, or `branch_computations={%a, %b}`."""
    match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
    return tuple(re.findall(r"[\w.\-]+", match.group(1))) if match else ()

  def attribute(self, key: str) -> str:
    """The bare text of attribute `key`, up to the next comma outside of braces; "" where it has none."""
    match = re.search(rf"(?:^|[\s,]){key}=({_BRACES}|{_IOTA}|{_MESH}|[^\s,]+)", self.attributes)
    return match.group(1) if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in the order in which they stand, by name; `root` is the result's."""

  name: str
  instructions: dict[str, Instruction]
  root: str

  @functools.cached_property
  def parameters(self) -> tuple[str, ...]:
    """Names of the parameters, in order."""
    found = [i for i in self.instructions.values() if i.opcode == "parameter"]
    return tuple(i.name for i in sorted(found, key=lambda i: int(i.literal)))

  @functools.cached_property
  def users(self) -> dict[str, tuple[Instruction, ...]]:
    """Name → the instructions that read it."""
    users = {name: [] for name in self.instructions}
    for instruction in self.instructions.values():
      for name in dict.fromkeys(instruction.operands):
        users.setdefault(name, []).append(instruction)
    return {name: tuple(found) for name, found in users.items()}


@dataclasses.dataclass(frozen=True)
class Program:
  """What one device runs; `entry` is where it starts, `devices` how many run it together."""

  computations: dict[str, Computation]
  entry: str
  devices: int = 1


def parse(text: str) -> Program:
  """The program of an HLO module's text.

  Raises:
    UserError: text without an entry computation.
  """
  computations, entry, current, name, root = {}, None, None, "", ""
  for line in text.splitlines():
    if current is None:
      header = _HEADER.match(line)
      if header:
        name, current, root = header["name"], {}, ""
        entry = name if header["entry"] else entry
    elif line.startswith("}"):
      computations[name] = Computation(name, current, root or next(reversed(current), ""))
      current = None
    else:
      parsed = _INSTRUCTION.match(line)
      if parsed:
        current[parsed["name"]] = _instruction(parsed["name"], _COMMENT.sub("", parsed["rest"]))
        root = parsed["name"] if parsed["root"] else root
  if entry is None:
    raise UserError("the text has no ENTRY computation; give what compiled.as_text() returns")
  header = text[: text.find("\n")]
  counts = [re.search(rf"\b{key}=(\d+)", header) for key in ("num_partitions", "replica_count")]
  return Program(computations, entry, math.prod(int(m.group(1)) if m else 1 for m in counts))


def shapes_of(text: str) -> tuple[Shape, ...]:
  """The arrays of a shape's text, a tuple's in order."""
  return tuple(_shape(*match.group("kind", "dims", "layout")) for match in _LEAF.finditer(text))


@functools.lru_cache(maxsize=100_000)
def _shape(kind: str, dims: str, layout: str | None) -> Shape:
  sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
  order, _, rest = (layout or "").partition(":")
  tile = re.search(r"T\(([\d,]+)\)", rest)
  space = re.search(r"S\((\d+)\)", rest)
  return Shape(
    kind,
    sizes,
    tuple(int(d) for d in order.split(",") if d),
    tuple(int(d) for d in tile.group(1).split(",")) if tile else (),
    int(space.group(1)) if space else 0,
  )


def _instruction(name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ") if " " in rest else len(rest)
  opcode = _OPCODE.match(rest, end)
  if opcode is None:
    return Instruction(name, "unknown", shapes_of(rest[:end]), (), rest[end:])
  close = _closing(rest, opcode.end() - 1)
  inside = rest[opcode.end() : close]
  names = tuple(re.findall(r"%([\w.\-]+)", inside))
  return Instruction(
    name,
    opcode["opcode"],
    shapes_of(rest[:end]),
    names,
    rest[close + 1 :],
    inside if opcode["opcode"] in ("parameter", "constant") else "",
    _parts(rest[:end]) if opcode["opcode"].endswith("-start") else (),
  )


def _parts(text: str) -> tuple[tuple[Shape, ...], ...]:
  """Leaves of each element of a tuple's text; of an array's, there is one element."""
  inside = text[1:-1] if text.startswith("(") else text
  parts, end = [], 0
  while leaf := _LEAF.search(inside, end):
    begin = inside.find("(", end, leaf.start())
    end = leaf.end() if begin < 0 else _closing(inside, begin)
    parts.append(shapes_of(inside[leaf.start() : end]))
  return tuple(parts)


def _closing(text: str, start: int) -> int:
  """Index of the bracket that closes the one at `start`."""
  depth = 0
  for match in _BRACKET.finditer(text, start):
    depth += 1 if match.group() == "(" else -1
    if depth == 0:
      return match.start()
  return len(text)


_BRACKET = re.compile(r"[()]")
