"""What a step can be planned for: a TPU slice that is not there, or the devices that are."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from jaxseg.catalog import suggestion
from jaxseg.chips import TPUS, Chip, chip_of, count_chips
from jaxseg.errors import UserError

# What libtpu knows of the two kinds whose slices are flat.
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Otherwise libtpu asks the network for the machine that it is not on, and refuses a second process.
_NO_MACHINE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any that exists: what is compiled for is asked for by name
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4, cpu, gpu"


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for, and what is known about them.

  Attributes:
    name: as it was asked for.
    devices: in the compiler's order.
    chip: published rates; None where none are known.
    chips: how many there are.
    memory: bytes that one device has; None where it is not known.
  """

  name: str
  devices: Sequence[jax.Device]
  chip: Chip | None
  chips: int
  memory: float | int | None

  @property
  def per_chip(self) -> int:
    """Devices that the compiler shows for one chip."""
    return max(len(self.devices) // self.chips, 1)

  @property
  def vector_memory(self) -> int | None:
    """Bytes of a TPU core's vector memory; None of other devices."""
    return (self.chip.vector_memory or None) if self.chip else None


def open_topology(name: str) -> Topology:
  """The devices of `v5e:16x16`, of an accelerator's name (`v5litepod-256`), `cpu`, `cpu:8` or `gpu`.

  For a TPU slice nothing but libtpu is needed. It must be asked for before JAX has started a
  backend: everything that is really run, runs on the CPU then.

  Raises:
    UserError: no such topology (with the nearest and the known ones), libtpu or GPU missing.
  """
  name = slice_of(name.strip().lower())
  kind, _, size = name.partition(":")
  if kind == "cpu":
    if ":" in name and not re.fullmatch(r"[1-9]\d{0,3}", size):
      raise UserError(
        f"topology {name!r} is no number of devices; cpu is this machine, cpu:8 eight pretended devices of it"
      )
    return _local_cpu(name, int(size or 0))
  if kind == "gpu":
    if ":" in name:
      raise UserError(
        f"topology {name!r}: gpu means the GPUs of this machine and takes no number; config.mesh.devices=8"
        " uses eight of them"
      )
    return _local_gpu(name)
  if kind not in TPUS or not size:
    raise UserError(f"there is no topology {name!r}; {_hint(name)}")
  return _slice(name, kind, _sizes(name, kind, size))


def slice_of(name: str) -> str:
  """The topology of an accelerator's name: `v5litepod-16` is v5e:4x4, `v4-64` (TensorCores) is v4:2x4x4.

  Any other text comes back as it is.

  Raises:
    UserError: a name with a number that no slice has.
  """
  found = re.fullmatch(r"(v2|v3|v4|v5litepod|v5lite|v5e|v5p|v6e|tpu7x)-(\d{1,6})", name)
  if not found:
    return name
  kind = {"v5litepod": "v5e", "v5lite": "v5e"}.get(found[1], found[1])
  if kind not in TPUS:
    raise UserError(f"there are no rates and no compiler for {name!r}; chips: {', '.join(TPUS)}")
  chip, number = TPUS[kind], int(found[2])
  # v4 and v5p are counted in TensorCores, the others in chips.
  per = chip.cores if kind in ("v4", "v5p") else 1
  chips = number // per
  sizes = dict.fromkeys(math.prod(flat) for flat in _FLAT) if chip.axes == 2 else _cubes(chip.pod)
  if number % per or chips not in sizes:
    near = min(sizes, key=lambda count: abs(count - chips)) * per
    raise UserError(f"there is no slice {name!r}; the nearest is {found[1]}-{near}")
  if chip.axes == 2:
    shape = next(flat for flat in _FLAT if math.prod(flat) == chips)
  else:
    shape = sizes[chips]
  return f"{kind}:{'x'.join(map(str, shape))}"


def _cubes(pod: int) -> dict[int, tuple[int, int, int]]:
  """Chips → A x B x C of the usual slices of a three-dimensional pod: 4, and 8 to half a pod by doubling."""
  shapes = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
  shape = [4, 4, 4]
  while math.prod(shape) <= pod:
    shapes[math.prod(shape)] = tuple(sorted(shape))
    shape[shape.index(min(shape))] *= 2
  return shapes


def _hint(name: str) -> str:
  near = suggestion(name, _EXAMPLES.split(", "))
  return near.replace("known:", "examples:") + "; chips: " + ", ".join(TPUS)


def _sizes(name: str, kind: str, size: str) -> tuple[int, ...]:
  axes = TPUS[kind].axes
  shape = "x".join("ABC"[:axes])
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) or len(size.split("x")) != axes:
    example = next(word for word in _EXAMPLES.split(", ") if word.startswith(kind))
    raise UserError(f"topology {name!r}: a slice of {TPUS[kind].name} is {kind}:{shape}, such as {example}")
  sizes = tuple(map(int, size.split("x")))
  if math.prod(sizes) > TPUS[kind].pod:
    raise UserError(
      f"there is no slice {name!r}, of {math.prod(sizes):,} chips;"
      f" a pod of {TPUS[kind].name} has {TPUS[kind].pod:,}"
    )
  if axes == 2 and sizes not in _FLAT:
    chips = math.prod(sizes)
    near = min(_FLAT, key=lambda flat: abs(math.prod(flat) - chips))
    known = ", ".join(f"{kind}:{a}x{b}" for a, b in _FLAT)
    raise UserError(f"there is no slice {name!r}; the nearest is {kind}:{near[0]}x{near[1]}, all: {known}")
  return sizes


def _slice(name: str, kind: str, sizes: tuple[int, ...]) -> Topology:
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"topology {name!r} needs the TPU compiler, which is not installed; pip install 'jaxseg[tpu]' brings it"
    )
  for key, value in _NO_MACHINE.items():
    os.environ.setdefault(key, value)
  jax.config.update("jax_platforms", "cpu")
  chip, options = TPUS[kind], {}
  if kind in ("v4", "v5p"):
    options["chip_config_name"] = "megacore"  # one device a chip, as a job on the real slice sees it
  if math.prod(sizes) < 4:
    options["chips_per_host_bounds"] = (*sizes, 1)[:3]
  try:
    devices = topologies.get_topology_desc(name, "tpu", **options).devices
  except Exception as error:
    raise UserError(f"libtpu refuses the topology {name!r}: {_first_line(error)}") from None
  chips = count_chips(devices)
  return Topology(name, devices, chip, chips, chip.hbm_bytes * chips / len(devices))


def _local_cpu(name: str, count: int) -> Topology:
  if count:
    try:
      jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
      raise UserError(f"topology {name!r} must be asked for before JAX has started a backend") from None
  devices = jax.devices("cpu")
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return Topology(name, devices, None, len(devices), memory / len(devices))


def _local_gpu(name: str) -> Topology:
  try:
    devices = jax.devices("gpu")
  except RuntimeError:
    raise UserError(
      f"topology {name!r} means the GPUs of this machine, and JAX sees none;"
      f" others: {_EXAMPLES.removesuffix(', gpu')}"
    ) from None
  chip = chip_of(devices[0].device_kind)
  stats = devices[0].memory_stats() or {}
  memory = stats.get("bytes_limit") or (chip.hbm_bytes if chip else None)
  return Topology(name, devices, chip, len(devices), memory)


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
