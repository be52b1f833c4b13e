"""One mesh for everything, and which array lies how on it.

Axes: `data` (different images), `fsdp` (different images too, and parameters and optimizer
state are split over it), `spatial` (rows of one image; the layers that exchange halos do
the splitting). They are Auto axes: the compiler places what is not said here.

Images of a batch belong to device groups, one for each place on `data` and `fsdp`. A process reads the
images of the groups in which it has devices; processes that share a group read the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import UserError
from jaxseg.types import AnyArray

AXES = ("data", "fsdp", "spatial")
# Axes over which the images of a batch are spread.
BATCH_AXES = ("data", "fsdp")
# Entries of a batch whose second axis is the rows of an image, where they have three axes or more.
_PICTURES = ("image", "label")

# A leaf with fewer elements is kept whole everywhere, since gathering it costs more than it saves; unless
# leaves as small as that are more than this part of what a device holds.
MIN_SPLIT_ELEMENTS = 1 << 14
_WHOLE_PART = 0.1


def make_mesh(
  *, data: int = -1, fsdp: int = 1, spatial: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh ("data", "fsdp", "spatial") over `devices` (all of them by default).

  Args:
    data: groups of devices with different images; -1 takes what the other axes leave.
    fsdp: parts into which parameters and optimizer state are split.
    spatial: parts into which the rows of an image are split.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  count = len(devices)
  for axis, size in (("fsdp", fsdp), ("spatial", spatial), ("data", 1 if data == -1 else data)):
    if size < 1:
      raise UserError(f"mesh axis {axis} is {size}, expected at least 1" + " or -1" * (axis == "data"))
  inner = fsdp * spatial
  if count % inner:
    raise UserError(
      f"fsdp={fsdp} times spatial={spatial} is {inner}, which does not divide the {count} devices;"
      f" their product must be one of {_divisors(count)}"
    )
  if data == -1:
    data = count // inner
  if data * inner != count:
    raise UserError(
      f"a mesh of data={data}, fsdp={fsdp}, spatial={spatial} needs {data * inner} devices and there are"
      f" {count}; set data=-1 or data={count // inner}"
    )
  return Mesh(_arranged((data, fsdp, spatial), devices), AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
  """The devices in the mesh's shape, so that those that exchange most are neighbours in the network of links.

  `jax.make_mesh` does not take every shape on every TPU, nor devices of several slices.
  """
  slices: dict[int, list[Any]] = {}
  for device in devices:
    slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
  parts = [slices[index] for index in sorted(slices)]
  equal = len({len(part) for part in parts}) == 1 and shape[0] % len(parts) == 0
  if len(parts) > 1 and equal:
    # Only sums of gradients cross the slower network between slices.
    each = (shape[0] // len(parts), *shape[1:])
    return np.concatenate([_arranged(each, part) for part in parts])
  try:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except (AssertionError, ValueError, TypeError):
    # JAX's ways to say that some of a slice's devices are no block of its grid: in the order they come in.
    return np.array([device for part in parts for device in part], dtype=object).reshape(shape)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """First axis over `data` and `fsdp`, everything else whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
  """Shardings for the entries of a batch (or their shapes): images and labels also have their rows split.

  Rows lie over `spatial` where they divide, and whole otherwise, like every other entry.
  """

  def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
    if name in _PICTURES and len(shape) > 2 and shape[1] % mesh.shape["spatial"] == 0:
      return NamedSharding(mesh, PartitionSpec(BATCH_AXES, "spatial"))
    return batch_sharding(mesh)

  return {name: sharding(name, np.shape(x)) for name, x in batch.items()}


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: Any, mesh: Mesh | AbstractMesh, *, min_elements: int | None = None) -> Any:
  """Shardings for a tree of arrays (or their shapes): split over `fsdp`, or whole.

  A leaf is split along its largest axis that `fsdp` divides; leaves under `min_elements`
  and leaves without such an axis stay whole, and so does everything when `fsdp` is 1.
  Optimizer moments have their parameter's shape, so they are split like it.

  Args:
    state: the tree.
    mesh: of which the axis `fsdp` counts.
    min_elements: None takes `MIN_SPLIT_ELEMENTS`, or in a small model the largest power of two for which
      all smaller leaves together are at most a tenth of a device's share of the tree.
  """
  parts = mesh.shape["fsdp"]
  if min_elements is None:
    min_elements = _min_elements([int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(state)], parts)

  def leaf_sharding(leaf) -> NamedSharding:
    shape = np.shape(leaf)
    dims = [d for d in range(len(shape)) if shape[d] % parts == 0]
    if parts == 1 or not dims or np.prod(shape) < min_elements:
      return replicated(mesh)
    split = max(dims, key=lambda d: shape[d])
    return NamedSharding(mesh, PartitionSpec(*("fsdp" if d == split else None for d in range(split + 1))))

  return jax.tree.map(leaf_sharding, state)


def _min_elements(sizes: Sequence[int], parts: int) -> int:
  limit = MIN_SPLIT_ELEMENTS
  while limit > 1 and sum(n for n in sizes if n < limit) > _WHOLE_PART * sum(sizes) / parts:
    limit //= 2
  return limit


def place(tree: Any, mesh: Mesh, *, min_elements: int | None = None) -> Any:
  """`tree` on the mesh as `state_sharding` says, in buffers of its own.

  The training step donates its state; a copy keeps the caller's arrays alive. In a job of several
  processes each gives the same values.
  """
  # device_put with may_alias=False still shares the buffer of the device that has the array already.
  copies = jax.tree.map(lambda x: np.array(x) if _is_spread_from_host(x, mesh) else jnp.copy(x), tree)
  return put(copies, state_sharding(tree, mesh, min_elements=min_elements))


def on_mesh(tree: Any, mesh: Mesh) -> Any:
  """`tree` on the mesh: what lies on it stays as it is, the rest goes as `state_sharding` says."""

  def wanted(x, sharding):
    there = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
    return x.sharding if there else sharding

  return put(tree, jax.tree.map(wanted, tree, state_sharding(tree, mesh)))


def put(tree: Any, shardings: Any) -> Any:
  """`tree` laid out as `shardings`, also over several processes, each of which gives the same values.

  Arrays that lie so already are not copied.
  """

  def one(x, sharding):
    if not _is_spread_from_host(x, sharding):
      return jax.device_put(x, sharding)
    # Not device_put, which would send every value between the processes to compare them.
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

  return jax.tree.map(one, tree, shardings)


def _is_spread_from_host(x: Any, where: Mesh | NamedSharding) -> bool:
  """Whether `x` is this process's own, and is to be spread over several processes."""
  mesh = where.mesh if isinstance(where, NamedSharding) else where
  return mesh.is_multi_process and not (isinstance(x, jax.Array) and not x.is_fully_addressable)


def groups_of_process(mesh: Mesh, *, process: int | None = None) -> tuple[int, ...]:
  """The device groups (places on data x fsdp, in the order of the batch) in which a process has devices."""
  process = jax.process_index() if process is None else process
  groups = mesh.devices.reshape(-1, mesh.shape["spatial"])
  return tuple(i for i, group in enumerate(groups) if any(d.process_index == process for d in group))


def rows_to_read(batch_size: int, mesh: Mesh, *, process: int | None = None) -> tuple[int, ...]:
  """The rows of a global batch that a process reads and gives to `to_global`: the images of its groups.

  Args:
    batch_size: images of the global batch.
    mesh: over the devices of all processes.
    process: its index; None is this one.

  Raises:
    UserError: the batch cannot be spread evenly.
  """
  check_batch(batch_size, mesh)
  each = batch_size // _groups(mesh)
  return tuple(g * each + i for g in groups_of_process(mesh, process=process) for i in range(each))


def check_batch(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError unless `batch_size` images can be spread evenly over the device groups of the mesh."""
  unit = _groups(mesh)
  if batch_size >= 1 and batch_size % unit == 0:
    return
  below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
  nearest = f"{below} or {above}" if below > 0 else f"{above}"
  raise UserError(
    f"a batch of {batch_size} cannot be spread evenly over {unit} device groups (data x fsdp); use {nearest}"
  )


def to_global(batch: Mapping[str, AnyArray], mesh: Mesh) -> dict[str, jax.Array]:
  """Rows of a batch that this process read → global arrays, laid out as `batch_shardings` says.

  With several processes, each gives its `rows_to_read`, in order and whole: the rows of an image
  that other processes' devices hold are dropped here. Entries that are not numbers (`id`) have no
  place on a device and are left out.

  Raises:
    UserError: the rows do not divide among this process's device groups.
  """
  arrays = {name: np.asarray(x) for name, x in batch.items()}
  arrays = {name: x for name, x in arrays.items() if x.dtype.kind in "biuf" or x.dtype.name == "bfloat16"}
  if not arrays:
    return {}
  rows = len(next(iter(arrays.values())))
  mine = groups_of_process(mesh)
  each, left = divmod(rows, len(mine))
  if left or not rows:
    if len(mine) == _groups(mesh):
      check_batch(rows, mesh)  # they are the batch
    raise UserError(
      f"this process gave {rows} images for its {len(mine)} device groups (data x fsdp); give a multiple of"
      f" {len(mine)}, as jaxseg.sharding.rows_to_read says"
    )
  # Rows of the global batch -> where this process has them.
  place_of = {g * each: i * each for i, g in enumerate(mine)}
  shardings = batch_shardings(arrays, mesh)

  def spread(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    def local(index: tuple[slice, ...]) -> np.ndarray:
      first = place_of[index[0].start or 0]
      return x[(slice(first, first + each), *index[1:])]

    return jax.make_array_from_callback((each * _groups(mesh), *x.shape[1:]), sharding, local)

  return {name: spread(x, shardings[name]) for name, x in arrays.items()}


def _groups(mesh: Mesh | AbstractMesh) -> int:
  return mesh.shape["data"] * mesh.shape["fsdp"]


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
