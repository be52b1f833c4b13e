"""Bilinear resize by PyTorch's rule: two taps an axis, no antialiasing, either corner convention.

`jax.image.resize` antialiases when it shrinks and has no `align_corners`.

- Definition: `resize_reference`, the weighted pair of neighbours.
- TPU: `resize_by_matrices`, a matrix product for the rows and one for the columns. Interleaving the
  phases of an enlargement, as the CPU does, moves every element between the lanes and sublanes of a TPU.
- GPU: `resize_by_gathers` of a whole factor, the definition, which XLA puts into one kernel with what reads
  the result, with the derivative of the phases; products otherwise.
- CPU: `resize_by_phases`, one weighted pair for each phase of a whole factor, several times faster than a
  product with a matrix that is almost all zeros.

Labels take the nearest pixel. The forms are linear in `x` and built of JAX's own operations, so both
derivatives are JAX's.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.ops.definition import by_platform
from jaxseg.types import AnyArray, Dim

# Of an enlargement by a whole factor; GPU: benchmarks/results/h100.md.
CHOICE = {"cpu": "phases", "tpu": "matrices", "cuda": "gathers", "rocm": "matrices"}


def resize_reference(
  x: Float[AnyArray, "*b h w c"], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "*b ho wo c"]:
  """The definition: the weighted pair of neighbours, rows first."""
  x = jnp.asarray(x)
  for axis in (-3, -2):
    x = _interpolate(x, axis, neighbours(size[axis + 3], x.shape[axis], align_corners=align_corners))
  return x


def rescale_reference(x: Float[AnyArray, "*b h w c"], factor: float) -> Float[Array, "*b ho wo c"]:
  """The definition of `rescale`: the weighted pair of neighbours 1 / factor apart, rows first."""
  x = jnp.asarray(x)
  for axis in (-3, -2):
    n = x.shape[axis]
    x = _interpolate(x, axis, neighbours(int(n * factor), n, step=1 / factor))
  return x


def resize(
  x: Float[AnyArray, "*b h w c"], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "*b ho wo c"]:
  """Bilinear resize of the two axes before the last to `size` (rows, columns).

  Equal to `torch.nn.functional.interpolate(mode="bilinear", antialias=False)`.

  Args:
    x: image-like array, channels last.
    size: rows and columns of the result.
    align_corners: corner pixels' centres stay corners (TF DeepLab), instead of the pixels' outer edges.
  """
  x = jnp.asarray(x)
  for axis in resize_order(x.shape[-3:-1], size):
    x = resize_axis(x, axis % x.ndim, size[axis + 3], align_corners=align_corners)
  return x


def rescale(x: Float[AnyArray, "*b h w c"], factor: float) -> Float[Array, "*b ho wo c"]:
  """Bilinear resize by `factor`: pixels lie 1 / factor apart exactly, sizes are rounded down."""
  x = jnp.asarray(x)
  for axis in (-3, -2):
    n = x.shape[axis]
    x = apply_matrix(interpolation_matrix(int(n * factor), n, step=1 / factor), x, axis % x.ndim)
  return x


def resize_labels(
  labels: Int[AnyArray, "*b h w"], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Int[Array, "*b ho wo"]:
  """Nearest-neighbour resize of label maps to `size` (rows, columns).

  By the pixels' centres, as Pillow does; with `align_corners` pixels lie
  (n − 1) / (m − 1) apart from the first to the last: 321 to 41 takes every eighth (Caffe's DeepLab).
  """
  labels = jnp.asarray(labels)
  for axis in (-2, -1):
    n, m = labels.shape[axis], size[axis]
    index = np.arange(m)
    if align_corners:
      source = np.floor(index * ((n - 1) / max(m - 1, 1)) + 0.5)
    else:
      # Added up pixel by pixel as in Pillow, whose rounding decides ties between two pixels.
      source = np.floor(np.cumsum([n / m / 2, *[n / m] * (m - 1)]))
    labels = jnp.take(labels, np.minimum(source.astype(int), n - 1), axis)
  return labels


def resize_sum(
  maps: Sequence[Float[Array, "*b _ _ c"]], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "*b ho wo c"]:
  """The sum of several maps, each resized to `size`."""
  arguments = tuple(maps)
  return lax.platform_dependent(
    *arguments,
    cpu=lambda *maps: resize_sum_reference(maps, size, align_corners=align_corners),
    default=lambda *maps: resize_sum_by_matrices(maps, size, align_corners=align_corners),
  )


def resize_sum_reference(maps, size: tuple[Dim, Dim], *, align_corners: bool = False):
  """The definition, and the form for CPUs: one resize after the other."""
  return functools.reduce(operator.add, (resize(x, size, align_corners=align_corners) for x in maps))


def resize_sum_by_matrices(maps, size: tuple[Dim, Dim], *, align_corners: bool = False):
  """The form for accelerators: the rows of each, then the columns of all by one product, which is the sum."""
  axis = maps[0].ndim - 3
  rows = [resize_axis(x, axis, size[0], align_corners=align_corners) for x in maps]
  columns = [interpolation_matrix(size[1], x.shape[-2], align_corners=align_corners) for x in maps]
  return apply_matrix(np.concatenate(columns, 1), jnp.concatenate(rows, -2), axis + 1)


def resize_axis(
  x: Float[Array, "*b"], axis: int, out_size: int, *, align_corners: bool = False
) -> Float[Array, "*_"]:
  """`resize` of one axis, counted from the front."""
  in_size = x.shape[axis]
  if out_size == in_size:
    return x

  def by_matrix(x):
    matrix = interpolation_matrix(out_size, in_size, align_corners=align_corners)
    return apply_matrix(matrix, x, axis)

  if out_size % in_size or align_corners:
    return by_matrix(x)
  factor = out_size // in_size
  forms = {
    "matrices": by_matrix,
    "phases": lambda x: enlarge_axis(x, axis, factor),
    "gathers": lambda x: gather_axis(x, axis, factor),
  }
  return by_platform(CHOICE, forms)(x)


def resize_by_matrices(x, size: tuple[Dim, Dim], *, align_corners: bool = False):
  """The form for accelerators."""
  for axis in resize_order(x.shape[-3:-1], size):
    matrix = interpolation_matrix(size[axis + 3], x.shape[axis], align_corners=align_corners)
    x = apply_matrix(matrix, x, axis % x.ndim)
  return x


def resize_by_gathers(x, size: tuple[int, int]):
  """The form for GPUs, of a size that is a whole multiple of `x`'s and without `align_corners`."""
  for axis in resize_order(x.shape[-3:-1], size):
    x = gather_axis(x, axis % x.ndim, size[axis + 3] // x.shape[axis])
  return x


def resize_by_phases(x, size: tuple[Dim, Dim]):
  """The form for CPUs, of a size that is a whole multiple of `x`'s and without `align_corners`."""
  for axis in resize_order(x.shape[-3:-1], size):
    x = enlarge_axis(x, axis % x.ndim, size[axis + 3] // x.shape[axis])
  return x


def resize_order(before: tuple[Dim, ...], after: tuple[Dim, Dim]) -> list[int]:
  """The axes -3 and -2: the one that shrinks most, or grows least, first, to leave less for the other."""
  return sorted((-3, -2), key=lambda axis: after[axis + 3] / before[axis + 2])


def interpolation_matrix(
  out_size: int, in_size: int, *, align_corners: bool = False, step: float | None = None
) -> np.ndarray:
  """The (out_size, in_size) weights of one axis, float32; each row has at most two and sums to 1.

  `step` is the distance of neighbouring outputs in input pixels, `in_size / out_size` if not given.
  """
  low, high, weight = neighbours(out_size, in_size, align_corners=align_corners, step=step)
  matrix = np.zeros((out_size, in_size))
  np.add.at(matrix, (np.arange(out_size), low), 1 - weight)
  np.add.at(matrix, (np.arange(out_size), high), weight)
  return matrix.astype(np.float32)


def neighbours(
  out_size: int, in_size: int, *, align_corners: bool = False, step: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """For each output pixel of an axis: the two input pixels, and the weight of the second."""
  index = np.arange(out_size, dtype=np.float64)
  if align_corners:
    source = index * ((in_size - 1) / (out_size - 1) if out_size > 1 else 0.0)
  else:
    source = np.maximum((index + 0.5) * (in_size / out_size if step is None else step) - 0.5, 0.0)
  low = np.minimum(np.floor(source).astype(int), in_size - 1)
  return low, np.minimum(low + 1, in_size - 1), source - low


def apply_matrix(
  matrix: Float[AnyArray, "o i"],
  x: Float[Array, "*b"],
  axis: int,
  *,
  precision: lax.Precision = lax.Precision.HIGHEST,
) -> Float[Array, "*_"]:
  """`matrix` times an axis of `x`, in `x`'s dtype; accumulated in float32 and rounded once.

  `precision` is that of float32; of bfloat16 one pass is exact but for the weights' own rounding.
  """
  if x.dtype != jnp.float32:
    precision = lax.Precision.DEFAULT
  y = lax.dot_general(
    jnp.asarray(matrix, jnp.float32), x.astype(jnp.float32), (((1,), (axis,)), ((), ())), precision=precision
  )  # the new axis comes first
  return jnp.moveaxis(y, 0, axis).astype(x.dtype)


def enlarge_axis(x: Float[Array, "*b"], axis: int, factor: int) -> Float[Array, "*_"]:
  """Enlargement by a whole factor: the first and last pixel repeat beyond the edge."""
  first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, -1, None, axis=axis)
  return enlarge_padded(jnp.concatenate([first, x, last], axis), axis, factor)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def gather_axis(x: Float[Array, "*b"], axis: int, factor: int) -> Float[Array, "*_"]:
  """Equal to `enlarge_axis`; float32 inside, rounded once. Its derivative is that of `enlarge_axis`."""
  low, high, weight = neighbours(x.shape[axis] * factor, x.shape[axis])
  weight = np.float32(weight).reshape(-1, *[1] * (x.ndim - axis - 1))
  before, after = (jnp.take(x, i, axis, mode="clip").astype(jnp.float32) for i in (low, high))
  return (before * (1 - weight) + after * weight).astype(x.dtype)


@gather_axis.defjvp
def _gather_axis_jvp(axis, factor, primals, tangents):
  # The transpose of a gather is a scatter, which takes a GPU ten times as long.
  tangent = enlarge_axis(tangents[0].astype(jnp.float32), axis, factor)
  return gather_axis(primals[0], axis, factor), tangent.astype(tangents[0].dtype)


def enlarge_padded(padded: Float[Array, "*b"], axis: int, factor: int) -> Float[Array, "*_"]:
  """Phase p of every pixel but the outermost two is one weighted pair of neighbours."""
  n = padded.shape[axis] - 2
  before, here, after = (lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(3))
  phases = []
  for p in range(factor):
    offset = (p + 0.5) / factor - 0.5  # of the output pixel's centre from the input pixel's
    other = before if offset < 0 else after
    phases.append(here * (1 - abs(offset)) + other * abs(offset))
  y = jnp.stack(phases, axis=axis + 1)
  return y.reshape(*padded.shape[:axis], n * factor, *padded.shape[axis + 1 :])


def _interpolate(x, axis: int, pair):
  low, high, weight = pair
  weight = jnp.asarray(weight, x.dtype).reshape(-1, *[1] * (-1 - axis))
  return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight
