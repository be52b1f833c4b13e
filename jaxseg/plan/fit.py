"""Compiling a step ahead of time: the memory it takes, why it does not fit, the largest batch that does."""

import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Mapping

import jax

from jaxseg.ops.definition import for_chip
from jaxseg.plan import cost as cost_lib
from jaxseg.plan.cost import Cost, count
from jaxseg.plan.hlo import parse

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# In the compiler's words: what a program needs, and what there is.
_NEEDS = (
  r"total memory required for [\w ]+\(([\d.]+)(\w)\) exceeds available \w+ \(([\d.]+)(\w)\)",
  r"Used ([\d.]+)(\w) of ([\d.]+)(\w) hbm",
)
# What the first estimate leaves free: compilers trade memory for time near the limit, and fragment it.
_MARGIN = 0.97


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device, by the compiled program's own figures.

  Attributes:
    arguments: state and batch.
    temporaries: activations and whatever else lives within a step.
    outputs: the new state; `aliased` of them lie where arguments lay.
    aliased: see `outputs`.
    code: the program.
  """

  arguments: float | int = 0.0
  temporaries: float | int = 0.0
  outputs: float | int = 0.0
  aliased: float | int = 0.0
  code: float | int = 0.0

  @property
  def total(self) -> float | int:
    """What must be there at once."""
    return self.arguments + self.temporaries + self.outputs - self.aliased + self.code


@dataclasses.dataclass(frozen=True)
class Attempt:
  """One compilation of the step.

  Attributes:
    batch_size: images, over all devices.
    memory: of one device.
    fits: whether the compiler, or the device's memory, allows it.
    cost: None when it does not fit.
    reasons: where it does not fit, the compiler's words on what is too large, largest first.
    usable: bytes that the compiler has for a program, where it said so.
    seconds: that the compilation took.
    largest: the instructions that move most, where they were asked for.
  """

  batch_size: int
  memory: Memory
  fits: bool
  cost: Cost | None = None
  reasons: tuple[str, ...] = ()
  usable: float | int | None = None
  seconds: float | int = 0.0
  largest: tuple[cost_lib.Largest, ...] = ()


@dataclasses.dataclass(frozen=True)
class Largest:
  """The largest batch that fits, as far as it is known.

  Attributes:
    fits: the largest that was compiled and fits; 0 for none.
    refused: the smallest that was compiled and does not; None for none.
    estimate: the largest by a straight line through the memory of those; `fits` where nothing lies between;
      None where the compiler has refused what it was given and told no figures.
  """

  fits: int
  refused: int | None
  estimate: int | None


def attempt(
  lower: Callable[[int], jax.stages.Lowered],
  batch_size: int,
  *,
  memory: float | int | None,
  vector_memory: int | None = None,
  dump: str = "",
  top: int = 0,
) -> Attempt:
  """Compiles the step for `batch_size` images and counts what it does.

  Args:
    lower: batch size → the lowered step.
    batch_size: images, over all devices.
    memory: bytes of one device; None allows anything that compiles.
    vector_memory: bytes of a TPU core's, by which kernels and their blocks are chosen; None takes a v5e's.
    dump: file for the text of the optimised program; "" writes none.
    top: how many of the largest instructions to list.
  """
  began = time.perf_counter()
  with for_chip(vector_memory=vector_memory):
    lowered = lower(batch_size)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if not re.search(r"ran out of memory|RESOURCE_EXHAUSTED", str(error), flags=re.I):
      raise
    needed, usable, reasons = exhausted(str(error))
    # Of what is needed the compiler says no more than the sum.
    used = Memory(temporaries=needed)
    return Attempt(batch_size, used, False, None, reasons, usable, time.perf_counter() - began)
  seconds = time.perf_counter() - began
  stats = compiled.memory_analysis()
  used = Memory(
    stats.argument_size_in_bytes,
    stats.temp_size_in_bytes,
    stats.output_size_in_bytes,
    stats.alias_size_in_bytes,
    stats.generated_code_size_in_bytes,
  )
  fits = memory is None or used.total <= memory
  text = compiled.as_text()
  if dump:
    pathlib.Path(dump).write_text(text)
  program = parse(text)
  largest = tuple(cost_lib.largest(program, top)) if top else ()
  return Attempt(batch_size, used, fits, count(program), seconds=seconds, largest=largest)


def exhausted(message: str) -> tuple[float, float | None, tuple[str, ...]]:
  """What a TPU's compiler says of a program that is too large.

  Returns:
    Bytes that it needs (0 where the message does not tell), bytes that there are, and its largest
    arrays, largest first, where it lists them.
  """
  needed, available = 0.0, None
  for pattern in _NEEDS:
    if found := re.search(pattern, message):
      needed, available = (float(found.group(i)) * _UNITS.get(found.group(i + 1), 1) for i in (1, 3))
      break
  reasons = []
  for block in re.split(r"\n\s*\d+\. (?=Size: )", message)[1:]:
    size = re.search(r"Size: ([\d.]+)(\w)", block)
    shape = re.search(r"Shape: (\w+\[[\d,]*\])", block)
    name = re.search(r'op_name="([^"]*)"', block)
    if size and shape:
      reasons.append(
        f"{size.group(1)} {size.group(2)}iB {shape.group(1)}" + (f" of {name.group(1)}" if name else "")
      )
  return needed, available, tuple(reasons)


def largest_batch(
  first: Attempt, compile_at: Callable[[int], Attempt], *, unit: int, memory: float | int, compiles: int
) -> Largest:
  """The largest batch whose step fits, by as many compilations as are allowed.

  Memory grows nearly linearly with the batch: the next batch to try is where the line through the
  two last known points meets the limit, kept between what fits and what does not.

  Args:
    first: the attempt at the batch that was asked for.
    compile_at: batch size → attempt.
    unit: batches are multiples of it.
    memory: bytes of one device.
    compiles: how many more may be made.
  """
  known = {first.batch_size: first}
  for _ in range(compiles):
    batch = _estimate(known, unit, memory, fresh=True)
    if batch is None:
      break
    known[batch] = compile_at(batch)
  low, high = _bracket(known)
  told = any(found.memory.total for found in known.values()) or (high is not None and high - low <= unit)
  return Largest(low, high, _estimate(known, unit, memory, fresh=False) if told else None)


def _bracket(known: Mapping[int, Attempt]) -> tuple[int, int | None]:
  fits = [batch for batch, found in known.items() if found.fits]
  refused = [batch for batch, found in known.items() if not found.fits]
  return max(fits, default=0), min(refused, default=None)


def _estimate(known: Mapping[int, Attempt], unit: int, memory: float | int, *, fresh: bool) -> int | None:
  """The multiple of `unit` at which memory is full, from what fits up to below what does not.

  With `fresh`, one that has not been tried; None when there is none left.
  """
  low, high = _bracket(known)
  floor = low + unit if fresh else low
  ceiling = None if high is None else (high - 1) // unit * unit
  if ceiling is not None and floor > ceiling:
    return None if fresh else low
  tried = [known[batch] for batch in sorted(known)]
  near = tried[-2:] if high is None else [a for a in tried if a.batch_size in (low, high)]
  limit = min((a.usable for a in tried if a.usable), default=memory * _MARGIN)
  near = [a for a in near if a.memory.total]
  if not near:
    # Nothing to draw a line through: halfway, which is no estimate.
    return floor if ceiling is None else max((low + ceiling) // 2 // unit * unit, floor)
  last, used = near[-1], [a.memory.total for a in near]
  if len(near) == 2 and used[1] > used[0]:
    slope = (used[1] - used[0]) / (near[1].batch_size - near[0].batch_size)
  else:
    slope = last.memory.temporaries / last.batch_size
  full = last.batch_size + (limit - used[-1]) / slope if slope > 0 else (low + (high or low)) / 2
  guess = max(int(full) // unit * unit, floor)
  return guess if ceiling is None else min(guess, ceiling)
