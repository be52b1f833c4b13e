"""A plan as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxseg.chips import GIB, Chip
from jaxseg.plan.cost import Cost
from jaxseg.plan.cost import Largest as Instruction
from jaxseg.plan.fit import Attempt, Largest
from jaxseg.plan.topology import Topology

_REASONS = 4
# The compiler's estimates of fusions that only stream are too long by up to so much; what takes longer still
# is bound by elementwise arithmetic.
_ESTIMATE_WITHIN = 4


def step_seconds(cost: Cost, chip: Chip, per_chip: int = 1) -> dict[str, float]:
  """Seconds that a step spends on each of compute, memory, links and the compiler's estimate.

  The first three are floors at the published rates. "estimate" is what the TPU compiler expects of all
  fusions one after the other, the vector unit's work included; it is there only where the compiler writes
  cycles and the chip's clock is known.

  Args:
    cost: of one device.
    chip: its rates.
    per_chip: devices that share the chip.
  """
  wire = sum(item.wire_bytes for item in cost.collectives.values())
  return {
    "compute": cost.passes * per_chip / chip.flops,
    "memory": cost.padded_bytes * per_chip / chip.hbm_rate,
    "links": wire * per_chip / chip.link_rate,
  } | ({"estimate": cost.cycles / chip.clock} if cost.cycles and chip.clock else {})


def report(
  topology: Topology,
  mesh: Mesh,
  attempt: Attempt,
  *,
  image: tuple[int, int],
  state: Mapping[str, float | int],
  about: Mapping[str, str] | None = None,
  largest: Largest | None = None,
  batch_unit: int = 1,
) -> list[str]:
  """The plan, one fact a line.

  Args:
    topology: what was compiled for.
    mesh: over its devices.
    attempt: at the batch that was asked for.
    image: rows, columns of the crop.
    state: what of the arguments → bytes on one device.
    about: further rows, name → text.
    largest: what a search found.
    batch_unit: batches are multiples of it.
  """
  unit = "device" if topology.per_chip > 1 or topology.chip is None else "chip"
  rows = {"topology": _topology(topology), "mesh": _mesh(mesh, attempt.batch_size, image)}
  if len({device.process_index for device in mesh.devices.flat}) > 1:
    rows["hosts"] = _hosts(mesh, attempt.batch_size)
  rows |= about or {}
  rows["memory"] = _memory(topology, attempt, unit)
  rows[""] = _breakdown(attempt, state)
  if not attempt.fits:
    rows["why"] = _why(attempt, topology, state)
  if attempt.cost is not None:
    rows |= _work(attempt.cost, unit)
    if topology.chip is not None:
      rows["at best"] = _roofline(attempt, topology)
      rows |= _estimate(attempt, topology)
    if attempt.largest:
      rows["longest"] = [_instruction(item, unit) for item in attempt.largest]
  if largest is not None:
    rows["largest"] = _largest(largest, batch_unit)
  width = max(map(len, rows))
  lines = []
  for name, text in rows.items():
    for i, line in enumerate(text if isinstance(text, list) else [text]):
      lines.append(f"{name if i == 0 else '':>{width}}  {line}")
  return lines


def _topology(topology: Topology) -> str:
  kind = topology.devices[0].device_kind
  if topology.chip is None:
    return f"{topology.name}: {len(topology.devices)} {kind} device(s)"
  text = f"{topology.name}: {topology.chips} {topology.chip.name} chips, {len(topology.devices)} devices"
  if topology.per_chip > 1:
    return text + f" ({topology.per_chip} a chip)"
  if topology.chip.cores > 1:
    return text + f" (one a chip, of {topology.chip.cores} TensorCores)"
  return text


def _mesh(mesh: Mesh, batch_size: int, image: tuple[int, int]) -> str:
  groups = mesh.shape["data"] * mesh.shape["fsdp"]
  axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  return f"{axes}; {batch_size} images of {image[0]}x{image[1]} a step, {batch_size // groups} a device group"


def _hosts(mesh: Any, batch_size: int) -> str:
  """Which host reads how much: a host reads the images of all device groups in which it has devices."""
  groups = mesh.devices.reshape(-1, mesh.shape["spatial"])
  of_group = [{device.process_index for device in group} for group in groups]
  hosts = sorted(set().union(*of_group))
  devices = mesh.devices.size / len(hosts)
  reads = [sum(host in group for group in of_group) * batch_size // len(groups) for host in hosts]
  text = f"{len(hosts)}, {devices:g} devices each, which read {_range(reads)} of the {batch_size} images"
  spans = max(map(len, of_group))
  return text + (f"; an image lies on {spans} hosts" if spans > 1 else "")


def _range(counts: Sequence[int]) -> str:
  return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"


def _memory(topology: Topology, attempt: Attempt, unit: str) -> str:
  used = attempt.memory.total
  text = f"{_gib(used)} a {unit}"
  if topology.memory:
    text += f" of {_gib(topology.memory)}"
  text += ": fits" if attempt.fits else ": does not fit"
  if topology.per_chip > 1:
    text += f"; {_gib(used * topology.per_chip)} a chip of {_gib(topology.memory * topology.per_chip)}"
  elif topology.chip is not None and topology.chip.cores > 1:
    text += f"; {_gib(used / topology.chip.cores)} a TensorCore"
  return text + f" (compiled in {attempt.seconds:.0f} s)"


def _breakdown(attempt: Attempt, state: Mapping[str, float | int]) -> list[str]:
  memory = attempt.memory
  parts = ", ".join(f"{name} {_gib(size)}" for name, size in state.items())
  parts = f" ({parts})" if parts else ""
  if not memory.arguments:
    return [f"state {_gib(sum(state.values()))}{parts}"]
  lines = [
    f"arguments {_gib(memory.arguments)}{parts}",
    f"temporaries {_gib(memory.temporaries)}",
    f"output {_gib(memory.outputs)}, {_gib(memory.aliased)} of it in place of arguments",
  ]
  return lines + ([f"code {_gib(memory.code)}"] if memory.code else [])


def _why(attempt: Attempt, topology: Topology, state: Mapping[str, float | int]) -> list[str]:
  limit, held = attempt.usable or topology.memory, sum(state.values())
  if held > limit:
    lines = [
      f"parameters and optimizer state alone take {_gib(held)} of the {_gib(limit)} that a program may have;"
      " raise config.mesh.fsdp to split them over more devices"
    ]
  else:
    rest = _gib(max(attempt.memory.total - held, 0)) if attempt.memory.total else "too much"
    lines = [
      f"activations and other temporaries take {rest} beside {_gib(held)} of state, and a program may have"
      f" {_gib(limit)}; take fewer images a device (config.batch_size, or more devices),"
      " config.dtype=bfloat16, or split images over config.mesh.spatial"
    ]
  if attempt.reasons:
    lines += ["the largest arrays:", *(f"  {reason}" for reason in attempt.reasons[:_REASONS])]
  return lines


def _work(cost: Cost, unit: str) -> dict[str, str | list[str]]:
  rows = {"compute": f"{_decimal(cost.flops, 'FLOP')} a {unit} a step in dot products and convolutions"}
  if cost.passes > cost.flops:
    rows["compute"] += (
      f" (in full float32 precision, which takes the matrix unit as long as {_decimal(cost.passes, 'FLOP')})"
    )
  padding = f" ({_decimal(cost.nbytes, 'B')} without the padding of tiles)" * (
    cost.padded_bytes > cost.nbytes
  )
  rows["traffic"] = f"{_decimal(cost.padded_bytes, 'B')} a {unit} a step through main memory{padding}"
  kinds = [
    f"{kind}: {item.count:g}, {_decimal(item.nbytes, 'B')}, {_decimal(item.wire_bytes, 'B')} sent by a {unit}"
    for kind, item in sorted(cost.collectives.items())
  ]
  rows["collectives"] = kinds or "none"
  if cost.kernels:
    listed = ", ".join(f"{target} {times:g}" for target, times in sorted(cost.kernels.items()))
    rows["kernels"] = f"{listed} (their bytes are counted, their arithmetic is not known)"
  if cost.endless:
    rows["loops"] = f"{cost.endless} of unknown length, counted once"
  return rows


def _roofline(attempt: Attempt, topology: Topology) -> str:
  seconds = step_seconds(attempt.cost, topology.chip, topology.per_chip)
  seconds.pop("estimate", None)
  longest = max(seconds, key=seconds.get)
  rate = attempt.batch_size / seconds[longest]
  parts = ", ".join(f"{name} {value * 1e3:.4g}" for name, value in seconds.items())
  return (
    f"no less than {seconds[longest] * 1e3:.4g} ms a step, {rate:,.0f} images/s, for {longest}"
    f" ({parts} ms at the published {topology.chip.flops / 1e12:g} TFLOP/s,"
    f" {topology.chip.hbm_rate / 1e9:g} GB/s, {topology.chip.link_rate / 1e9:g} GB/s)"
  )


def _estimate(attempt: Attempt, topology: Topology) -> dict[str, str]:
  """The compiler's cycles, with what they are worth; no row where it writes none."""
  floors = step_seconds(attempt.cost, topology.chip, topology.per_chip)
  estimate = floors.pop("estimate", None)
  if estimate is None:
    return {}
  longest = max(floors, key=floors.get)
  bound = longest if estimate < _ESTIMATE_WITHIN * floors[longest] else "the vector unit"
  text = (
    f"{attempt.cost.cycles / 1e6:.4g} M cycles by the compiler's own estimate, {estimate * 1e3:.4g} ms at"
    f" {topology.chip.clock / 1e9:g} GHz with nothing overlapped: it ranks programs, and as a time is up to"
    f" {_ESTIMATE_WITHIN} times too long; bound by {bound}"
  )
  return {"expected": text + ("; kernels are not in it" if attempt.cost.kernels else "")}


def _instruction(item: Instruction, unit: str) -> str:
  source = "/".join(item.source.split("/")[-3:])
  times = f" x {item.times:g}" if item.times != 1 else ""
  return (
    f"{_decimal(item.cost.padded_bytes, 'B')}, {item.cost.cycles / 1e6:.3g} M cycles: {item.name}{times}"
    f" -> {item.result} {source}".rstrip()
  )


def _largest(largest: Largest, unit: int) -> str:
  tried = [f"{largest.fits} compiled and fits"] if largest.fits else []
  tried += [f"{largest.refused} compiled and does not"] if largest.refused else []
  if largest.refused is not None and largest.refused - largest.fits <= unit:
    text = f"a batch of {largest.fits} fits" if largest.fits else "no batch fits"
  elif largest.estimate is None:
    return (
      f"not known: a batch of {largest.refused} does not fit, and the compiler does not say by how much;"
      " --compiles=6 searches"
    )
  else:
    text = f"a batch of about {largest.estimate} fits, an estimate by extrapolation"
  return f"{text} ({', '.join(tried)})"


def _gib(size: float | int) -> str:
  return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size * 1024 / GIB:.3g} MiB"


def _decimal(value: float | int, unit: str) -> str:
  power = next((p for p in (12, 9, 6, 3) if value >= 10**p), 0)
  return f"{value / 10**power:.4g} {dict(zip((12, 9, 6, 3, 0), 'TGMk ', strict=True))[power].strip()}{unit}"
