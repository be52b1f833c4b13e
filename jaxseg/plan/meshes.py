"""Which meshes a batch can run on, when it cannot on the one that was asked for."""

from collections.abc import Iterator

_SHOWN = 8


def working_meshes(
  devices: int, batch_size: int, height: int, *, rows: int = 4
) -> Iterator[tuple[int, int, int]]:
  """(data, fsdp, spatial) over all `devices` for which every group of devices has whole images.

  Those that split images least come first.

  Args:
    devices: to use, all of them.
    batch_size: images a step.
    height: of an image, in pixels.
    rows: pixels of one row in the first stage; `spatial` must divide the rows.
  """
  for spatial in _divisors(devices):
    groups = devices // spatial
    if batch_size % groups or (spatial > 1 and (height // rows) % spatial):
      continue
    for fsdp in _divisors(groups):
      yield groups // fsdp, fsdp, spatial


def advice(devices: int, batch_size: int, height: int) -> str:
  """What would work where a mesh cannot spread `batch_size` images over `devices`, in one sentence."""
  meshes = list(working_meshes(devices, batch_size, height))
  nearest = max(batch_size // devices, 1) * devices
  parts = []
  if meshes:
    # Splitting parameters as well is a choice for memory; two of each kind are enough to show it.
    few = [mesh for mesh in meshes if mesh[1] == 1] + [mesh for mesh in meshes if mesh[1] == 2]
    shown = ", ".join("x".join(map(str, mesh)) for mesh in sorted(few, key=lambda m: (m[2], m[1]))[:_SHOWN])
    parts.append(f"meshes (data x fsdp x spatial) that use all {devices} devices: {shown}")
  fewer = max(n for n in _divisors(batch_size) if n <= devices)
  parts.append(f"{fewer} devices as data={fewer}")
  parts.append(f"a batch of {nearest}")
  return f"for a batch of {batch_size} these would work: {'; '.join(parts)}"


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
