"""What one step of a program does on one device: FLOPs, bytes through main memory, collectives.

Everything comes from shapes of the optimised program, times the trips of the loops around it.
A fusion reads its operands and writes its results once, and of an operand that it only slices,
the slice. A kernel (a custom call) moves its operands and results; what it claims about itself
is not looked at. Arrays that a TPU keeps in its vector memory cost nothing here.
"""

import collections
import dataclasses
import functools
import math
import re

from jaxseg.plan import arithmetic
from jaxseg.plan.hlo import Computation, Instruction, Program, Shape

COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
  "collective-broadcast",
)  # fmt: skip
# They make a name for what is there already.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency",
  "opt-barrier", "optimization-barrier", "partition-id", "replica-id", "domain", "unknown",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
# Custom calls that are annotations or names, not kernels.
_MARKS = (
  "Sharding",
  "SPMDFullToShardShape",
  "SPMDShardToFullShape",
  "AllocateBuffer",
  "ConcatBitcast",
  "AssumeGatherIndicesInBound",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """Exchanges of one kind in a step: how many, of how many bytes a device, and what of it crosses its links.

  Attributes:
    count: exchanges, times the trips of the loops around them.
    nbytes: of the larger of operand and result, on one device.
    wire_bytes: that one device sends, in a ring over its group.
  """

  count: float | int = 0.0
  nbytes: float | int = 0.0
  wire_bytes: float | int = 0.0

  def __add__(self, other: "Collective") -> "Collective":
    return Collective(
      self.count + other.count, self.nbytes + other.nbytes, self.wire_bytes + other.wire_bytes
    )

  def __mul__(self, trips: float | int) -> "Collective":
    return Collective(self.count * trips, self.nbytes * trips, self.wire_bytes * trips)


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one execution, on one device.

  Attributes:
    flops: of dot products and convolutions, two for a multiply-add.
    passes: the same, each times the passes that a TPU's matrix unit takes for its precision.
    nbytes: through main memory, without the padding of tiles.
    padded_bytes: with it; what a TPU moves.
    collectives: by kind.
    kernels: calls of custom kernels by target; their bytes are counted, their arithmetic is not known.
    endless: loops whose trips the program does not tell; their bodies are counted once.
  """

  flops: float | int = 0.0
  passes: float | int = 0.0
  nbytes: float | int = 0.0
  padded_bytes: float | int = 0.0
  collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)
  kernels: dict[str, float | int] = dataclasses.field(default_factory=dict)
  endless: int = 0

  def __add__(self, other: "Cost") -> "Cost":
    collectives_ = dict(self.collectives)
    for kind, item in other.collectives.items():
      collectives_[kind] = collectives_.get(kind, Collective()) + item
    kernels = collections.Counter(self.kernels)
    kernels.update(other.kernels)
    return Cost(
      self.flops + other.flops,
      self.passes + other.passes,
      self.nbytes + other.nbytes,
      self.padded_bytes + other.padded_bytes,
      collectives_,
      dict(kernels),
      self.endless + other.endless,
    )

  def __mul__(self, trips: float | int) -> "Cost":
    return Cost(
      self.flops * trips,
      self.passes * trips,
      self.nbytes * trips,
      self.padded_bytes * trips,
      {kind: item * trips for kind, item in self.collectives.items()},
      {target: count * trips for target, count in self.kernels.items()},
      self.endless,
    )


def count(program: Program) -> Cost:
  """The cost of the entry computation; loops count as often as they run."""
  return _Counter(program).computation(program.entry)


class _Counter:
  """Walks the computations of one program, each once."""

  def __init__(self, program: Program):
    self.program = program
    self.computation = functools.cache(self._computation)

  def _computation(self, name: str) -> Cost:
    computation = self.program.computations[name]
    total = Cost()
    for instruction in computation.instructions.values():
      total += self._instruction(computation, instruction)
    return total

  def _instruction(self, computation: Computation, instruction: Instruction) -> Cost:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update-done")) or opcode == "async-update":
      return Cost()
    if opcode == "while":
      return self._while(instruction)
    if opcode == "conditional":
      branches = [
        name
        for key in ("branch_computations", "true_computation", "false_computation")
        for name in instruction.called(key)
      ]
      return max((self.computation(name) for name in branches), key=lambda c: (c.padded_bytes, c.flops))
    if opcode in ("call", "async-start"):
      called = instruction.called("to_apply") or instruction.called("calls")
      return sum((self.computation(name) for name in called), Cost())
    return self._work(computation, instruction)

  def _while(self, instruction: Instruction) -> Cost:
    (body,), (condition,) = instruction.called("body"), instruction.called("condition")
    trips = self._trips(instruction, condition)
    cost = (self.computation(body) + self.computation(condition)) * (1 if trips is None else trips)
    return cost + Cost(endless=int(trips is None))

  def _trips(self, instruction: Instruction, condition: str) -> int | None:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes)
    if known:
      return int(known.group(1))
    # A counted loop starts at 0 and compares with its length.
    names = [condition, *self._called(condition)]
    lines = [i for name in names for i in self.program.computations[name].instructions.values()]
    bounds = [
      int(i.literal) for i in lines if i.opcode == "constant" and re.fullmatch(r"\d+", i.literal.strip())
    ]
    compares = [i.attribute("direction") for i in lines if i.opcode == "compare"]
    return bounds[0] if compares == ["LT"] and len(bounds) == 1 else None

  def _called(self, name: str) -> list[str]:
    return [c for i in self.program.computations[name].instructions.values() for c in i.called("calls")]

  def _work(self, computation: Computation, instruction: Instruction) -> Cost:
    operands = [self._shapes(computation, name) for name in instruction.operands]
    moved = list(self._traffic(computation, instruction, operands))
    cost = Cost(
      nbytes=sum((shape.nbytes for shape in moved if shape.space == 0), 0.0),
      padded_bytes=sum((shape.padded_bytes for shape in moved if shape.space == 0), 0.0),
    )
    if instruction.opcode == "fusion":
      inner = sum((self.computation(name) for name in instruction.called("calls")), Cost())
      # Inside of a fusion nothing goes through main memory.
      return cost + dataclasses.replace(inner, nbytes=0.0, padded_bytes=0.0)
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
      return cost + Cost(collectives={kind: self._collective(kind, instruction, operands)})
    if instruction.opcode == "custom-call":
      target = instruction.attribute("custom_call_target").strip('"')
      if target in _MARKS:
        return Cost()
      cost += Cost(kernels={target: 1.0})
    work = arithmetic.flops(instruction, operands)
    return cost + Cost(flops=work, passes=work * arithmetic.passes(instruction, operands))

  def _shapes(self, computation: Computation, name: str) -> tuple[Shape, ...]:
    found = computation.instructions.get(name)
    return found.shapes if found else ()

  def _traffic(self, computation: Computation, instruction: Instruction, operands: list[tuple[Shape, ...]]):
    """The arrays, or parts of them, that the instruction reads and writes."""
    opcode = instruction.opcode
    if opcode == "fusion":
      (inner,) = (self.program.computations[name] for name in instruction.called("calls"))
      for position, leaves in enumerate(operands):
        yield from self._read(inner, position, leaves)
      yield from self._written(inner, instruction)
    elif opcode in _SLICES:
      yield from instruction.shapes
      yield from (_part(leaf, operands[0]) for leaf in instruction.shapes)
      yield from (leaf for leaves in operands[1:] for leaf in leaves)
    elif opcode == "dynamic-update-slice":
      yield from operands[1]
      yield from (_part(leaf, instruction.shapes) for leaf in operands[1])
    elif opcode == "scatter":
      # In place: the updated elements are read and written.
      results = len(instruction.shapes)
      yield from (leaf for leaves in operands[results:] for leaf in leaves)
      yield from (leaf for leaves in operands[results + 1 :] for leaf in leaves)
    elif opcode.removesuffix("-start") in COLLECTIVES:
      yield from (leaf for leaves in operands for leaf in leaves)
      yield from _result(opcode, instruction.shapes, sum(map(len, operands)))
    elif opcode.endswith("-start"):
      # copy-start (target, source, context); slice-start ((source), target, context).
      target = instruction.shapes[0 if opcode == "copy-start" else sum(map(len, operands))]
      yield target
      yield from (_part(target, leaves) for leaves in operands[:1])
    else:
      yield from (
        leaf for leaves in dict(zip(instruction.operands, operands, strict=True)).values() for leaf in leaves
      )
      yield from instruction.shapes

  def _read(self, inner: Computation, position: int, leaves: tuple[Shape, ...]):
    """What a fusion reads of one operand: all of it, or the slices when it only takes slices."""
    if position >= len(inner.parameters):
      yield from leaves
      return
    parts = self._slices(inner, inner.parameters[position])
    if parts is None:
      yield from leaves
    else:
      yield from (_part(shape, leaves) for shape in parts)

  def _slices(self, inner: Computation, name: str) -> list[Shape] | None:
    """Shapes of the slices where `name` is only sliced (or updated in place); None where it is read whole."""
    parts = []
    for user in inner.users.get(name, ()):
      first_only = user.operands and user.operands[0] == name and name not in user.operands[1:]
      if user.opcode in ("bitcast", "get-tuple-element"):
        deeper = self._slices(inner, user.name)
      elif user.opcode in _SLICES and first_only:
        deeper = list(user.shapes)
      elif user.opcode == "dynamic-update-slice" and first_only:
        deeper = []
      elif user.opcode == "fusion" and user.operands.count(name) == 1:
        (called,) = (self.program.computations[c] for c in user.called("calls"))
        deeper = self._slices(called, called.parameters[user.operands.index(name)])
      else:
        deeper = None
      if deeper is None:
        return None
      parts += deeper
    return parts

  def _written(self, inner: Computation, instruction: Instruction):
    """What a fusion writes: its results, and of one that it updates in place the update."""
    root = inner.instructions[inner.root]
    results = [inner.instructions.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(instruction.shapes):
      yield from instruction.shapes
      return
    for result, shape in zip(results, instruction.shapes, strict=True):
      while result is not None and result.opcode == "bitcast":
        result = inner.instructions.get(result.operands[0])
      if result is not None and result.opcode == "dynamic-update-slice":
        yield from (_part(leaf, (shape,)) for leaf in self._shapes(inner, result.operands[1]))
      else:
        yield shape

  def _collective(self, kind: str, instruction: Instruction, operands: list[tuple[Shape, ...]]) -> Collective:
    inputs = [leaf for leaves in operands for leaf in leaves]
    before = sum(leaf.nbytes for leaf in inputs)
    after = sum(leaf.nbytes for leaf in _result(instruction.opcode, instruction.shapes, len(inputs)))
    nbytes, group = max(before, after), self._group(instruction)
    # In a ring of n, a device passes on everything but its own part; a sum goes round twice.
    shares = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return Collective(1.0, nbytes, nbytes * shares.get(kind, (group - 1) / group))

  def _group(self, instruction: Instruction) -> int:
    """Devices that exchange with each other: lists, `[groups,size]<=[devices]`, or axes of a mesh."""
    text = instruction.attribute("replica_groups")
    if text.startswith("mesh["):
      axes, _, used = text.partition("]")
      sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes))
      # 'axis' is all of an axis, 'axis':(2)4 a part of size 4.
      named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", used)
      return math.prod(int(part or sizes[axis]) for axis, part in named)
    iota = re.match(r"\[(\d+),(\d+)\]", text)
    if iota:
      return int(iota.group(2))
    first = re.search(r"\{([\d,]+)\}", text)
    return len(first.group(1).split(",")) if first else max(self.program.devices, 1)


def _part(shape: Shape, whole: tuple[Shape, ...]) -> Shape:
  """`shape` where `whole` lies: its memory space, and its tiling when the rank is the same."""
  if not whole:
    return shape
  at = whole[0]
  if len(at.dims) == len(shape.dims):
    return dataclasses.replace(shape, space=at.space, order=at.order, tile=at.tile)
  return dataclasses.replace(shape, space=at.space)


def _result(opcode: str, shapes: tuple[Shape, ...], inputs: int) -> tuple[Shape, ...]:
  """The results among the leaves of a collective; an asynchronous one also has its operands and contexts."""
  if not opcode.endswith("-start") or len(shapes) < 2 * inputs:
    return shapes
  return shapes[inputs : 2 * inputs]
