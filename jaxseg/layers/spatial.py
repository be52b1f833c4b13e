"""Rows of one image over several devices: which maps are split, and the exchange of rows at the seams.

Under a mesh whose axis `spatial` is larger than 1, a map whose rows divide evenly lies split over it.
A layer that reads neighbouring rows runs on each device's rows by `jax.shard_map`, after one
exchange of exactly the rows that its window reaches beyond them. A layer that cannot be split that way
(rows that do not divide, a reach beyond the neighbour's rows) runs on the whole map on every
device of the axis. Nothing is padded to make it divide: that would change means and attention.

Layers do not see how their input lies, since mesh axes are Auto; the height of a map alone decides, by
the same rule everywhere. Without a mesh, or inside of a `shard_map`, all of this is the plain call.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from jaxseg.types import Dim

AXIS = "spatial"
_ROWS = PartitionSpec(None, AXIS)
_ANY = PartitionSpec.UNCONSTRAINED


# What to call where a layer or a stage runs whole although the rows of its mesh could be spread.
_watcher: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar("watcher", default=None)
_unsplit: contextvars.ContextVar[bool] = contextvars.ContextVar("unsplit", default=False)


def axis_size() -> int:
  """Over how many devices the surrounding mesh spreads the rows of an image; 1 without a mesh."""
  return 1 if _unsplit.get() else _mesh_size()


def _mesh_size() -> int:
  mesh = jax.sharding.get_abstract_mesh()
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  return mesh.shape[AXIS] if types.get(AXIS) == AxisType.Auto else 1


def shards(height: Dim, *, reach: int = 0) -> int:
  """Parts into which a map of `height` rows is split, 1 for none.

  Args:
    height: rows of the whole map.
    reach: rows that a device needs of a neighbour: it must have as many.
  """
  parts = axis_size()
  if parts == 1:  # of a symbolic height nothing can be asked
    return 1
  return parts if height % parts == 0 and height // parts >= max(reach, 1) else 1


@contextlib.contextmanager
def stage(height: Dim, *, reach: int = 1, multiple: int = 1) -> Iterator[None]:
  """Inside, nothing is split unless maps of `height` rows are, by devices with enough rows each.

  For the stages of an encoder: gathering before each layer that reaches too far would cost more than
  the whole stage on every device. What enters and leaves the stage goes through `split`.

  Args:
    height: rows of the stage's maps.
    reach: rows of a neighbour that the stage's layers read.
    multiple: of which a device's rows must be one.
  """
  parts = shards(height, reach=reach)
  unsplit = parts == 1 or height // parts % multiple != 0
  if unsplit:
    ran_whole()
  token = _unsplit.set(unsplit)
  try:
    yield
  finally:
    _unsplit.reset(token)


@contextlib.contextmanager
def watched(on_whole: Callable[[], None]) -> Iterator[None]:
  """Inside, `on_whole()` is called for every layer or stage that is traced to run whole on every device."""
  token = _watcher.set(on_whole)
  try:
    yield
  finally:
    _watcher.reset(token)


def ran_whole() -> None:
  """Tells who watches that what is being traced runs whole."""
  watcher = _watcher.get()
  if watcher is not None and _mesh_size() > 1:
    watcher()


def split(x: Array) -> Array:
  """`x` (b h w c) with its rows over the axis where they divide, and whole on every device otherwise."""
  if _mesh_size() == 1 or x.ndim != 4:
    return x
  return _constrain(x, AXIS if shards(x.shape[1]) > 1 else None)


def whole(x: Array) -> Array:
  """`x` (b h w c) with all its rows on every device of the axis: one all-gather where it was split."""
  return x if _mesh_size() == 1 or x.ndim != 4 else _constrain(x, None)


def _constrain(x: Array, rows: str | None) -> Array:
  return lax.with_sharding_constraint(x, PartitionSpec(_ANY, rows, *(_ANY,) * (x.ndim - 2)))


def exchange(
  x: Float[Array, "b h w c"], above: int, below: int, *, outside: float | str = 0.0
) -> Float[Array, "b h2 w c"]:
  """The device's own rows with `above` rows of the device before it and `below` of the one after.

  For use inside of `shard_map` over the axis.

  Args:
    x: the device's rows, at least as many as are sent.
    above: rows to put before them.
    below: rows to put after them.
    outside: what lies beyond the image: a value, or "edge" to repeat its first and last row (one row
      on a side at most).
  """
  size, index = lax.axis_size(AXIS), lax.axis_index(AXIS)
  parts = [x]
  if above:
    rows = lax.ppermute(x[:, -above:], AXIS, [(i, i + 1) for i in range(size - 1)])
    parts.insert(0, _outside(rows, x[:, :1], index == 0, outside))
  if below:
    rows = lax.ppermute(x[:, :below], AXIS, [(i + 1, i) for i in range(size - 1)])
    parts.append(_outside(rows, x[:, -1:], index == size - 1, outside))
  return jnp.concatenate(parts, 1) if len(parts) > 1 else x


def _outside(rows: Array, edge: Array, at_border: Array, outside: float | str) -> Array:
  """What was received; at the image's border, where nothing was (zeros came), what lies outside."""
  if outside == 0.0:
    return rows
  return jnp.where(at_border, edge if outside == "edge" else jnp.asarray(outside, rows.dtype), rows)


def inside(height: int, above: int, below: int, rows: int) -> Array:
  """(1, above + rows + below, 1, 1): which of a device's exchanged rows lie in an image of `height` rows."""
  first = lax.axis_index(AXIS) * rows - above
  row = first + jnp.arange(above + rows + below)
  return ((row >= 0) & (row < height))[None, :, None, None]


def on_rows(local: Callable[..., Array], x: Array, params: Any, *, same: Any = ()) -> Array:
  """`local(rows of x, *params, *same)` on every device of the axis, giving that device's rows of the result.

  Args:
    local: what runs on each device.
    x: a map that is split.
    params: tuple of arrays (or trees of them), the same on all devices; `local` may put them through a
      derivative of our own.
    same: the same, of which `local` makes what must stay equal on all devices (a `psum`'s other operand).
  """

  def run(x, params, same):
    # A `custom_vjp` gives each device its own gradient: only of something that may differ by device.
    params = jax.tree.map(lambda p: lax.pcast(p, AXIS, to="varying"), params)
    return local(x, *params, *same)

  return jax.shard_map(
    run, axis_names={AXIS}, in_specs=(_ROWS, PartitionSpec(), PartitionSpec()), out_specs=_ROWS
  )(x, tuple(params), tuple(same))


def windowed(
  apply: Callable[..., Array],
  x: Float[Array, "b h w c"],
  params: tuple[Array, ...],
  *,
  size: int,
  stride: int = 1,
  dilation: int = 1,
  padding: tuple[int, int] = (0, 0),
  outside: float = 0.0,
) -> Any:
  """A convolution or pooling, on split rows where that is possible.

  Args:
    apply: (x, *params, row_padding) → result, with `row_padding` (before, after) around the rows.
    x: the whole map.
    params: what else `apply` takes, the same for every row.
    size: of the window, in rows, with its `stride` and `dilation`.
    stride: see `size`.
    dilation: see `size`.
    padding: before and after the image's rows.
    outside: what the padding holds.
  """
  if _mesh_size() == 1 or (size == stride == 1 and padding == (0, 0)):
    return apply(x, *params, padding)  # the latter reads no row but its own
  height, extent = x.shape[1], (size - 1) * dilation + 1
  out = (height + sum(padding) - extent) // stride + 1
  above, below = padding[0], max(extent - stride - padding[0], 0)
  parts = shards(height, reach=max(above, below))
  if parts == 1 or out * stride != height or height // parts % stride:
    ran_whole()
    return split(whole(apply(whole(x), *params, padding)))  # both, or the compiler splits it on its own

  # Negative: the window of a last row ends before the device's rows do.
  after = min(extent - stride - padding[0], 0)

  def local(x, *params):
    return apply(exchange(x, above, below, outside=outside), *params, (0, after))

  return on_rows(local, x, params)
