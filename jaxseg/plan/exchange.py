"""Exchanges between devices: how many bytes, among how many, and which of the text are one and the same."""

import dataclasses
import math
import re

from jaxseg.errors import UserError
from jaxseg.plan.hlo import Instruction, Program, Shape

COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
  "collective-broadcast",
)  # fmt: skip
# A collective that a TPU runs beside other work stands in three fused computations: with the custom call that
# starts it, among that work, and with the one that ends it.
START, DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


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


def collective(instruction: Instruction, operands: list[tuple[Shape, ...]], devices: int) -> Collective:
  """What one collective exchanges.

  Args:
    instruction: it, or its start.
    operands: leaves of each operand.
    devices: that run the program together.
  """
  kind = instruction.opcode.removesuffix("-start")
  inputs = [leaf for leaves in operands for leaf in leaves]
  before = sum(leaf.nbytes for leaf in inputs)
  after = sum(leaf.nbytes for leaf in results(instruction.opcode, instruction.shapes, len(inputs)))
  nbytes, group = max(before, after), _group(instruction, devices)
  # In a ring of n, a device passes on everything but its own part; a sum goes round twice.
  shares = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0, "collective-broadcast": 1.0}
  return Collective(1.0, nbytes, nbytes * shares.get(kind, (group - 1) / group))


def results(opcode: str, shapes: tuple[Shape, ...], inputs: int) -> tuple[Shape, ...]:
  """The results among the leaves of a collective; an asynchronous one also has its operands and contexts."""
  if not opcode.endswith("-start") or len(shapes) < 2 * inputs:
    return shapes
  return shapes[inputs : 2 * inputs]


def continued(program: Program) -> dict[str, frozenset[str]]:
  """Fused computation → the collectives in it that go on with one that another fusion has started.

  They are told by their channel, which outside of fusions may be shared by exchanges that are not the same.
  """
  fused = {
    name
    for computation in program.computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode == "fusion"
    for name in instruction.called("calls")
  }
  channels, starts = {}, set()
  for name in fused:
    inside = program.computations[name].instructions.values()
    channels[name] = {i.name: i.attribute("channel_id") for i in inside if i.opcode in COLLECTIVES}
    if any(i.target == START for i in inside):
      starts.add(name)
  started = {channel for name in starts for channel in channels[name].values() if channel}
  return {
    name: frozenset(i for i, channel in found.items() if channel in started)
    for name, found in channels.items()
    if name not in starts
  }


def _group(instruction: Instruction, devices: int) -> int:
  """Devices that exchange with each other: lists, `[groups,size]<=[devices]`, or axes of a mesh."""
  text = instruction.attribute("replica_groups")
  if text.startswith("mesh["):
    axes, _, used = text.partition("]")
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes))
    # 'axis' is all of an axis, 'axis':(2)4 a part of size 4.
    named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", used)
    if not named:
      raise UserError(
        f"the replica groups {text!r} of {instruction.name} name no axis, which jaxseg cannot read; please"
        " report it with the program's text (--dump=FILE)"
      )
    return math.prod(int(part or sizes[axis]) for axis, part in named)
  iota = re.match(r"\[(\d+),(\d+)\]", text)
  if iota:
    return int(iota.group(2))
  first = re.search(r"\{([\d,]+)\}", text)
  return len(first.group(1).split(",")) if first else max(devices, 1)
