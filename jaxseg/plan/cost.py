"""What one step of a program does on one device: FLOPs, bytes through main memory, collectives.

Everything comes from shapes of the optimised program, times the trips of the loops around it.
A fusion reads its operands and writes its results once, and of an operand that it only slices,
the slice. A kernel (a custom call) moves its operands and results; what it claims about itself
is not looked at. Arrays that a TPU keeps in its vector memory cost nothing here.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator

from jaxseg.plan import arithmetic, exchange
from jaxseg.plan.exchange import COLLECTIVES, Collective
from jaxseg.plan.hlo import Computation, Instruction, Program, Shape

# They make a name for what is there already.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency",
  "opt-barrier", "optimization-barrier", "partition-id", "replica-id", "domain", "unknown",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
# Custom calls that are annotations or names, not kernels.
_MARKS = (
  exchange.START,
  exchange.DONE,
  "Sharding",
  "SPMDFullToShardShape",
  "SPMDShardToFullShape",
  "AllocateBuffer",
  "ConcatBitcast",
  "AssumeGatherIndicesInBound",
)
# Asynchronous starts that are read as they are.
_OWN_STARTS = (*COLLECTIVES, "async", "copy")


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one execution, on one device.

  Attributes:
    flops: of dot products and convolutions, two for a multiply-add.
    passes: the same, each times the passes that a TPU's matrix unit takes for its precision.
    nbytes: through main memory, without the padding of tiles.
    padded_bytes: with it; what a TPU moves.
    cycles: the TPU compiler's own estimate of the time of each fusion, in cycles of its clock, summed: rough,
      but it sees the vector unit, which neither FLOPs nor bytes do. 0 where the compiler writes none.
    collectives: by kind.
    kernels: calls of custom kernels by target; their bytes are counted, their arithmetic is not known.
    endless: loops whose trips the program does not tell; their bodies are counted once.
  """

  flops: float | int = 0.0
  passes: float | int = 0.0
  nbytes: float | int = 0.0
  padded_bytes: float | int = 0.0
  cycles: float | int = 0.0
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
      self.cycles + other.cycles,
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
      self.cycles * trips,
      {kind: item * trips for kind, item in self.collectives.items()},
      {target: count * trips for target, count in self.kernels.items()},
      self.endless,
    )


def count(program: Program) -> Cost:
  """The cost of the entry computation; loops count as often as they run."""
  return _Counter(program).computation(program.entry)


@dataclasses.dataclass(frozen=True)
class Largest:
  """One instruction of a program that takes long, with all of its executions in a step.

  Attributes:
    name: in the program's text.
    source: the JAX operation that it comes from ("jit(step)/.../conv_general_dilated"); "" where it has none.
    result: element type and shape of what it writes, of the first result.
    times: executions in a step.
    cost: of all of them.
  """

  name: str
  source: str
  result: str
  times: float | int
  cost: Cost


def largest(program: Program, number: int, *, by: str = "padded_bytes") -> list[Largest]:
  """The instructions with the most of one figure of `Cost`, largest first.

  Args:
    program: parsed.
    number: how many.
    by: "padded_bytes", "cycles" or "flops".
  """
  counter = _Counter(program)
  times: dict[str, float] = collections.defaultdict(float)

  def visit(name: str, trips: float) -> None:
    times[name] += trips
    for instruction in program.computations[name].instructions.values():
      for called, inner_trips in counter.calls(instruction):
        visit(called, trips * inner_trips)

  visit(program.entry, 1.0)
  found = []
  for name, trips in times.items():
    computation = program.computations[name]
    for instruction in computation.instructions.values():
      if next(counter.calls(instruction), None) is None:
        cost = counter.one(computation, instruction) * trips
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        shape = instruction.shapes[0] if instruction.shapes else None
        result = f"{shape.kind}[{','.join(map(str, shape.dims))}]" if shape else ""
        found.append(Largest(instruction.name, source.group(1) if source else "", result, trips, cost))
  return sorted(found, key=lambda item: getattr(item.cost, by), reverse=True)[:number]


class _Counter:
  """Walks the computations of one program, each once."""

  def __init__(self, program: Program):
    self.program = program
    self.computation = functools.cache(self._computation)
    self.continued = exchange.continued(program)

  def _computation(self, name: str) -> Cost:
    computation = self.program.computations[name]
    total = Cost()
    for instruction in computation.instructions.values():
      total += self.one(computation, instruction)
    return total

  def calls(self, instruction: Instruction) -> Iterator[tuple[str, float]]:
    """Computations that an instruction runs as they are, not fused, and how often."""
    match instruction.opcode:
      case "while":
        (body,), (condition,) = instruction.called("body"), instruction.called("condition")
        trips = self._trips(instruction, condition)
        yield from ((name, 1.0 if trips is None else float(trips)) for name in (body, condition))
      case "conditional":
        keys = ("branch_computations", "true_computation", "false_computation")
        branches = [name for key in keys for name in instruction.called(key)]
        # Only one of them runs: the dearest counts.
        yield max(branches, key=lambda b: (self.computation(b).padded_bytes, self.computation(b).flops)), 1.0
      case "call" | "async-start":
        yield from ((n, 1.0) for n in instruction.called("to_apply") or instruction.called("calls"))

  def one(self, computation: Computation, instruction: Instruction) -> Cost:
    """The cost of one execution of an instruction, with all that it calls."""
    opcode = instruction.opcode
    if instruction.name in self.continued.get(computation.name, ()):
      return Cost()
    if opcode in _FREE or opcode.endswith(("-done", "-update-done")) or opcode == "async-update":
      return Cost()
    called = list(self.calls(instruction))
    if called:
      cost = sum((self.computation(name) * trips for name, trips in called), Cost())
      endless = opcode == "while" and self._trips(instruction, called[1][0]) is None
      return cost + Cost(endless=int(endless))
    if opcode.endswith("-start") and opcode.removesuffix("-start") not in _OWN_STARTS:
      # Any other instruction, written with what it reads and with its results; the latter come second.
      results = instruction.parts[1] if len(instruction.parts) > 1 else instruction.shapes
      plain = dataclasses.replace(instruction, opcode=opcode.removesuffix("-start"), shapes=results, parts=())
      return self.one(computation, plain)
    return self._work(computation, instruction)

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
    estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    cost = Cost(
      cycles=float(estimate.group(1)) if estimate else 0.0,
      nbytes=sum((shape.nbytes for shape in moved if shape.space == 0), 0.0),
      padded_bytes=sum((shape.padded_bytes for shape in moved if shape.space == 0), 0.0),
    )
    if instruction.opcode == "fusion":
      inner = sum((self.computation(name) for name in instruction.called("calls")), Cost())
      # Inside of a fusion nothing goes through main memory.
      return cost + dataclasses.replace(inner, nbytes=0.0, padded_bytes=0.0, cycles=0.0)
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
      return cost + Cost(collectives={kind: exchange.collective(instruction, operands, self.program.devices)})
    if instruction.opcode == "custom-call":
      target = instruction.target
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
      yield from exchange.results(opcode, instruction.shapes, sum(map(len, operands)))
    elif opcode == "copy-start":
      # (target, source, context)
      yield instruction.shapes[0]
      yield from (_part(instruction.shapes[0], leaves) for leaves in operands[:1])
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
    if self._passes_on(inner, inner.parameters[position]):
      return
    parts = self._slices(inner, inner.parameters[position])
    if parts is None:
      yield from leaves
    else:
      yield from (_part(shape, leaves) for shape in parts)

  def _passes_on(self, inner: Computation, name: str) -> bool:
    """Whether an array only belongs to a collective under way, whose bytes its start counts."""
    under_way = self.continued.get(inner.name, ())
    users = inner.users.get(name, ())
    return bool(under_way) and all(
      user.name in under_way
      or (user.name == inner.root and (user.opcode == "tuple" or user.target == exchange.DONE))
      for user in users
    )

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
    under_way = self.continued.get(inner.name, ())
    if root.target == exchange.DONE and under_way:
      return
    if root.target == exchange.START:
      # As of a collective's own start: operands, results, contexts.
      started = [inner.instructions[name] for name in root.operands]
      before = sum(len(self._shapes(inner, name)) for i in started for name in i.operands)
      yield from exchange.results("-start", instruction.shapes, before)
      return
    results = [inner.instructions.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(instruction.shapes):
      yield from instruction.shapes
      return
    for result, shape in zip(results, instruction.shapes, strict=True):
      if under_way and result is not None and (result.name in under_way or result.opcode == "parameter"):
        continue
      while result is not None and result.opcode == "bitcast":
        result = inner.instructions.get(result.operands[0])
      if result is not None and result.opcode == "dynamic-update-slice":
        yield from (_part(leaf, (shape,)) for leaf in self._shapes(inner, result.operands[1]))
      else:
        yield shape


def _part(shape: Shape, whole: tuple[Shape, ...]) -> Shape:
  """`shape` where `whole` lies: its memory space, and its tiling when the rank is the same."""
  if not whole:
    return shape
  at = whole[0]
  if len(at.dims) == len(shape.dims):
    return dataclasses.replace(shape, space=at.space, order=at.order, tile=at.tile)
  return dataclasses.replace(shape, space=at.space)
