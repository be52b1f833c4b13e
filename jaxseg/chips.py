"""Published rates of accelerators, from Google's and NVIDIA's pages; bandwidths count one direction.

`jaxseg plan` holds a compiled step against them, and a training log its model FLOPs (MFU).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published rates of one chip.

  Attributes:
    name: as people say it.
    flops: dense bfloat16 FLOP/s of the matrix units (float16 where a chip has no bfloat16).
    hbm_bytes: capacity of its memory.
    hbm_rate: bytes/s to and from it.
    link_rate: bytes/s that it can send to its neighbours over all of its links.
    cores: TensorCores, of which the compiler may show each as a device.
    axes: sizes that a slice of it has.
    pod: chips of a whole pod.
    clock: of a TPU's TensorCore, in Hz, which turns its compiler's estimated cycles into seconds; 0 where
      it is not published.
    vector_memory: of a TPU's core, as JAX's table of chips has it, in bytes; 0 for a GPU.
  """

  name: str
  flops: float | int
  hbm_bytes: float | int
  hbm_rate: float | int
  link_rate: float | int
  cores: int = 1
  axes: int = 0
  pod: int = 0
  clock: float | int = 0
  vector_memory: int = 0


TPUS: Mapping[str, Chip] = {
  "v4": Chip(
    "TPU v4", 275e12, 32 * GIB, 1228e9, 300e9, cores=2, axes=3, pod=4096, clock=1050e6, vector_memory=16 << 20
  ),
  "v5e": Chip(
    "TPU v5e", 197e12, 16 * GIB, 819e9, 200e9, axes=2, pod=256, clock=1500e6, vector_memory=128 << 20
  ),
  "v5p": Chip(
    "TPU v5p",
    459e12,
    95 * GIB,
    2765e9,
    600e9,
    cores=2,
    axes=3,
    pod=8960,
    clock=1750e6,
    vector_memory=64 << 20,
  ),
  "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1640e9, 448e9, axes=2, pod=256, vector_memory=128 << 20),
  "tpu7x": Chip(
    "TPU7x", 2307e12, 192 * GIB, 7380e9, 600e9, cores=2, axes=3, pod=9216, vector_memory=64 << 20
  ),
}
# What JAX calls their devices.
_TPU_KINDS = {
  "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
  "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x", "TPU v7x": "tpu7x", "TPU v7": "tpu7x",
}  # fmt: skip
# By the words of what the driver calls them ("NVIDIA A100-SXM4-80GB"); the first whose words all occur.
GPUS: Sequence[tuple[tuple[str, ...], Chip]] = (
  (("GB200",), Chip("GB200", 2500e12, 186e9, 8000e9, 900e9)),
  (("B200",), Chip("B200", 2250e12, 180e9, 8000e9, 900e9)),
  (("H200",), Chip("H200", 989e12, 141e9, 4800e9, 450e9)),
  (("GH200",), Chip("GH200", 989e12, 96e9, 4000e9, 450e9)),
  (("H100", "PCIe"), Chip("H100 PCIe", 756e12, 80e9, 2000e9, 300e9)),
  (("H100", "NVL"), Chip("H100 NVL", 835e12, 94e9, 3900e9, 300e9)),
  (("H100",), Chip("H100 SXM", 989e12, 80e9, 3350e9, 450e9)),
  (("A100", "80GB"), Chip("A100 80 GB", 312e12, 80e9, 2039e9, 300e9)),
  (("A100",), Chip("A100 40 GB", 312e12, 40e9, 1555e9, 300e9)),
  (("V100", "PCIE"), Chip("V100 PCIe", 112e12, 16e9, 900e9, 16e9)),
  (("V100",), Chip("V100 SXM2", 125e12, 16e9, 900e9, 150e9)),
  (("L4",), Chip("L4", 121e12, 24e9, 300e9, 32e9)),
  (("T4",), Chip("T4", 65e12, 16e9, 300e9, 16e9)),
)


def chip_of(device_kind: str) -> Chip | None:
  """The chip of a device by what JAX calls it (`device.device_kind`); None where its rates are not known."""
  if device_kind in _TPU_KINDS:
    return TPUS[_TPU_KINDS[device_kind]]
  words = {word.lower() for word in re.split(r"[^0-9A-Za-z]+", device_kind)}
  return next((chip for named, chip in GPUS if {name.lower() for name in named} <= words), None)


def count_chips(devices: Sequence[Any]) -> int:
  """How many chips the devices are: a TPU's may show each of its cores as a device, side by side."""
  places = {(getattr(d, "slice_index", 0), tuple(getattr(d, "coords", ()) or (d.id,))) for d in devices}
  return len(places)


def peak_flops(devices: Sequence[Any]) -> float | None:
  """Published bfloat16 FLOP/s of all the devices together; None where that of their kind is not known."""
  chip = chip_of(devices[0].device_kind)
  return None if chip is None else float(chip.flops) * count_chips(devices)
