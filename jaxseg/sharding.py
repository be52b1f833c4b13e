"""One mesh for everything, and which array lies how on it.

Axes: `data` (different images), `fsdp` (different images too, and parameters and optimizer
state are split over it), `spatial` (rows of one image; the layers that exchange halos do
the splitting). They are Auto axes: the compiler places what is not said here.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.types import AnyArray

AXES = ("data", "fsdp", "spatial")
# Axes over which the images of a batch are spread.
BATCH_AXES = ("data", "fsdp")

# A leaf with fewer elements is kept whole everywhere: gathering it costs more than it saves.
MIN_SPLIT_ELEMENTS = 1 << 14


def make_mesh(
  *, data: int = -1, fsdp: int = 1, spatial: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh ("data", "fsdp", "spatial") over `devices` (all of them by default).

  Args:
    data: groups of devices with different images; -1 takes what the other axes leave.
    fsdp: parts into which parameters and optimizer state are split.
    spatial: parts into which the rows of an image are split.

  Raises:
    ValueError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  count = len(devices)
  for axis, size in (("fsdp", fsdp), ("spatial", spatial), ("data", 1 if data == -1 else data)):
    if size < 1:
      raise ValueError(f"mesh axis {axis} is {size}, expected at least 1" + " or -1" * (axis == "data"))
  inner = fsdp * spatial
  if count % inner:
    raise ValueError(
      f"fsdp={fsdp} times spatial={spatial} is {inner}, which does not divide the {count} devices;"
      f" their product must be one of {_divisors(count)}"
    )
  if data == -1:
    data = count // inner
  if data * inner != count:
    raise ValueError(
      f"a mesh of data={data}, fsdp={fsdp}, spatial={spatial} needs {data * inner} devices and there are"
      f" {count}; set data=-1 or data={count // inner}"
    )
  # `jax.make_mesh` makes Explicit axes unless told.
  return jax.make_mesh((data, fsdp, spatial), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """First axis over `data` and `fsdp`, everything else whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: Any, mesh: Mesh | AbstractMesh, *, min_elements: int = MIN_SPLIT_ELEMENTS) -> Any:
  """Shardings for a tree of arrays (or their shapes): split over `fsdp`, or whole.

  A leaf is split along its largest axis that `fsdp` divides; leaves under `min_elements`
  and leaves without such an axis stay whole, and so does everything when `fsdp` is 1.
  Optimizer moments have their parameter's shape, so they are split like it.
  """
  parts = mesh.shape["fsdp"]

  def leaf_sharding(leaf) -> NamedSharding:
    shape = np.shape(leaf)
    dims = [d for d in range(len(shape)) if shape[d] % parts == 0]
    if parts == 1 or not dims or np.prod(shape) < min_elements:
      return replicated(mesh)
    split = max(dims, key=lambda d: shape[d])
    return NamedSharding(mesh, PartitionSpec(*("fsdp" if d == split else None for d in range(split + 1))))

  return jax.tree.map(leaf_sharding, state)


def place(tree: Any, mesh: Mesh, *, min_elements: int = MIN_SPLIT_ELEMENTS) -> Any:
  """`tree` on the mesh as `state_sharding` says, in buffers of its own.

  The training step donates its state; a copy keeps the caller's arrays alive.
  """
  # device_put with may_alias=False still shares the buffer of the device that has the array already.
  copies = jax.tree.map(jnp.copy, tree)
  return jax.device_put(copies, state_sharding(tree, mesh, min_elements=min_elements))


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh, *, processes: int | None = None) -> None:
  """Raises ValueError unless `batch_size` images can be spread evenly over devices and processes."""
  processes = jax.process_count() if processes is None else processes
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  unit = int(np.lcm(shards, processes))
  if batch_size >= 1 and batch_size % unit == 0:
    return
  below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
  nearest = f"{below} or {above}" if below > 0 else f"{above}"
  raise ValueError(
    f"a batch of {batch_size} cannot be spread evenly over {shards} device groups (data x fsdp) and"
    f" {processes} processes; use {nearest}"
  )


def to_global(batch: dict[str, AnyArray], mesh: Mesh) -> dict[str, jax.Array]:
  """Rows of a batch that this process read → global arrays, spread over the mesh.

  Every process gives the same number of rows. Entries that are not numbers (`id`) have no
  place on a device and are left out.

  Raises:
    ValueError: the rows of all processes do not divide among the devices.
  """
  sharding = batch_sharding(mesh)
  arrays = {name: np.asarray(x) for name, x in batch.items()}
  arrays = {name: x for name, x in arrays.items() if x.dtype.kind in "biuf" or x.dtype.name == "bfloat16"}
  if arrays:
    check_batch(len(next(iter(arrays.values()))) * jax.process_count(), mesh)
  return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in arrays.items()}


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
