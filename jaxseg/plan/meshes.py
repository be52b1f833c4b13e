"""Which meshes a batch can run on, when it cannot on the one that was asked for."""

import functools
from collections.abc import Callable, Iterable, Iterator

_SHOWN = 8
# Pixels of one row in the first stage; `spatial` must divide the rows.
_ROW = 4
# How the names of encoders' first parts begin: what is whole from there on is nearly the whole model.
_EARLY = ("stem", "stage1", "block0", "entry0")


def working_meshes(devices: int, batch_size: int, height: int) -> Iterator[tuple[int, int, int]]:
  """(data, fsdp, spatial) over all `devices` for which every group of devices has whole images.

  Those that split images least come first.

  Args:
    devices: to use, all of them.
    batch_size: images a step.
    height: of an image, in pixels.
  """
  for spatial in _divisors(devices):
    groups = devices // spatial
    if batch_size % groups or (spatial > 1 and height // _ROW % spatial):
      continue
    for fsdp in _divisors(groups):
      yield groups // fsdp, fsdp, spatial


def advice(
  devices: int,
  batch_size: int,
  height: int,
  *,
  micro_batches: int = 1,
  whole_from: Callable[[int], str | None] = lambda spatial: None,
) -> str:
  """What would work where a mesh cannot spread `batch_size` images over `devices`, in one sentence.

  Args:
    devices: that there are.
    batch_size: images a step.
    height: of an image, in pixels.
    micro_batches: equal parts into which a step cuts its batch.
    whole_from: devices that share an image → the first part of the model that each of them does for all
      rows; None for none. Meshes on which that is the first stage, so that all do the same, are left out.
  """
  whole_from = functools.cache(whole_from)
  unit = devices * micro_batches
  parts = []
  images, left = divmod(batch_size, micro_batches)
  if not left:
    parts += _all_devices(devices, images, height, whole_from)
    fewer = _fewer(devices, images)
    parts.append(f"{fewer} devices as data={fewer}" if fewer > 1 else "1 device")
  parts.append(f"a batch of {max(batch_size // unit, 1) * unit}")
  cut = f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
  return f"for a batch of {batch_size}{cut} these would work: {'; '.join(parts)}"


def _all_devices(
  devices: int, images: int, height: int, whole_from: Callable[[int], str | None]
) -> list[str]:
  """Meshes on all devices; where none of them is worth it, the one on most devices that is."""
  meshes = list(_worthwhile(working_meshes(devices, images, height), whole_from))
  # Splitting parameters as well is a choice for memory; two of each kind are enough to show it.
  few = [mesh for mesh in meshes if mesh[1] == 1] + [mesh for mesh in meshes if mesh[1] == 2]
  if few:
    shown = [_shown(mesh, whole_from) for mesh in sorted(few, key=lambda m: (m[2], m[1]))[:_SHOWN]]
    return [f"meshes (data x fsdp x spatial) that use all {devices} devices: {', '.join(shown)}"]
  # An image on 2, 4, 8 ... devices, and as many images side by side as there is room for.
  some = [
    (_fewer(devices // spatial, images), 1, spatial)
    for spatial in range(2, devices + 1)
    if height // _ROW % spatial == 0
  ]
  larger = [mesh for mesh in some if _size(mesh) > _fewer(devices, images)]
  most = max(_worthwhile(larger, whole_from), key=_size, default=None)
  if most is None:
    return []
  return [f"{_size(most)} devices as data x fsdp x spatial = {_shown(most, whole_from)}"]


def _worthwhile(
  meshes: Iterable[tuple[int, int, int]], whole_from: Callable[[int], str | None]
) -> Iterator[tuple[int, int, int]]:
  """The meshes, in the order of `spatial`, up to where devices share no work any more."""
  for mesh in meshes:
    first = whole_from(mesh[2]) if mesh[2] > 1 else None
    if first is not None and first.startswith(_EARLY):
      return  # with more devices an image each has fewer rows still
    yield mesh


def _shown(mesh: tuple[int, int, int], whole_from: Callable[[int], str | None]) -> str:
  first = whole_from(mesh[2]) if mesh[2] > 1 else None
  return "x".join(map(str, mesh)) + (f" (rows whole from {first} on)" if first else "")


def _size(mesh: tuple[int, int, int]) -> int:
  return mesh[0] * mesh[1] * mesh[2]


def _fewer(devices: int, images: int) -> int:
  """The most devices that can have equally many whole images."""
  return max(n for n in _divisors(images) if n <= devices)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
