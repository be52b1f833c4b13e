"""`ops.upsampled` under a mesh: each device makes strips of its own rows, or runs a kernel for its images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float

from jaxseg.layers import spatial
from jaxseg.ops import upsampled as ops
from jaxseg.sharding import BATCH_AXES
from jaxseg.types import AnyArray


def map_upsampled(
  function: Callable[..., Any],
  logits: Float[AnyArray, "b h w k"],
  pixels: Sequence[AnyArray],
  *,
  align_corners: bool = False,
  fills: Sequence[Any] | None = None,
  derivative: Callable[..., Any] | None = None,
  kernels: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
  """`ops.upsampled.map_rows`, which has the arguments.

  Where the rows of `pixels` are spread over devices, every device holds the small map and makes the strips
  of its own rows; the sums are those over all devices.
  """
  logits, pixels = jnp.asarray(logits), tuple(map(jnp.asarray, pixels))
  b, in_rows, _, classes = logits.shape
  height, width = pixels[0].shape[1:3]
  images = -(-b // batch_shards())
  parts = spatial.shards(height)
  if parts == 1:
    return ops.map_rows(
      function,
      spatial.whole(logits),
      pixels,
      align_corners=align_corners,
      fills=fills,
      derivative=derivative,
      kernels={p: on_each for p, k in (kernels or {}).items() if (on_each := for_own_images(k)) is not None},
      images=images,
    )
  own = height // parts
  rows = ops.rows_of_strip(images, (own, width), max(in_rows // parts, 1), classes)
  strips = ops.plan_strips(height, in_rows, rows=rows, align_corners=align_corners, parts=parts)

  def local(pixels, strips, logits):
    # A gradient of our own differs by device; that of what is the same on all is their sum.
    logits = lax.pcast(logits, spatial.AXIS, to="varying")
    maps, sums = ops.map_strips(
      function,
      logits,
      pixels,
      strips,
      width,
      align_corners=align_corners,
      fills=fills,
      derivative=derivative,
    )
    return maps, lax.psum(sums, spatial.AXIS)

  by_rows, by_strips, same = PartitionSpec(None, spatial.AXIS), PartitionSpec(spatial.AXIS), PartitionSpec()
  return jax.shard_map(
    local, axis_names={spatial.AXIS}, in_specs=(by_rows, by_strips, same), out_specs=(by_rows, same)
  )(pixels, ops.Strips(*map(jnp.asarray, strips)), spatial.whole(logits))


def for_own_images(kernel: Callable[..., Any] | None, *, same: int = 0) -> Callable[..., Any] | None:
  """A Pallas kernel on each device for its images, which the compiler cannot spread by itself.

  None where it must not be called: without a mesh, nobody knows how arrays lie on several devices, and inside
  of a `shard_map` JAX asks of what a kernel gives how it differs by device.

  Args:
    kernel: of arrays of a batch; where the images do not divide evenly, every device takes all.
    same: how many of its arguments, the last ones, are the same for all images.
  """
  mesh = jax.sharding.get_abstract_mesh()
  unknown = mesh.empty and jax.default_backend() != "cpu" and jax.device_count() > 1
  if kernel is None or unknown or AxisType.Manual in mesh.axis_types:
    return None
  free = {a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
  if math.prod(mesh.shape[axis] for axis in free) == 1:
    return kernel

  def run(*arguments):
    axes = tuple(_batch_axes()) if arguments[0].shape[0] % batch_shards() == 0 else ()
    rows = PartitionSpec(axes)
    specs = (rows,) * (len(arguments) - same) + (PartitionSpec(),) * same
    local = jax.shard_map(kernel, axis_names=free, in_specs=specs, out_specs=rows, check_vma=False)
    return local(*arguments)

  return run


def batch_shards() -> int:
  """Over how many devices the surrounding mesh spreads the images of a batch."""
  return math.prod(_batch_axes().values())


def _batch_axes() -> dict[str, int]:
  """Axes of the surrounding mesh over which it spreads the images of a batch, and their sizes."""
  mesh = jax.sharding.get_abstract_mesh()
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  return {axis: mesh.shape[axis] for axis in BATCH_AXES if types.get(axis) == AxisType.Auto}
