"""Bilinear resize by PyTorch's rule: two taps an axis, no antialiasing, either corner convention.

`jax.image.resize` antialiases when it shrinks and has no `align_corners`; it is also a
dense product with an (out, in) matrix. Enlarging by a whole factor needs only one
weighted pair for each of the factor's phases, which is several times faster and has a
cheap derivative.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxseg.layers import spatial
from jaxseg.ops.definition import defined_by
from jaxseg.types import AnyArray


def resize_reference(
  x: Float[AnyArray, "*b h w c"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "*b ho wo c"]:
  """The definition: the weighted pair of neighbours, rows first."""
  x = jnp.asarray(x)
  for axis in (-3, -2):
    x = _interpolate(x, axis, _neighbours(size[axis + 3], x.shape[axis], align_corners=align_corners))
  return x


@defined_by(resize_reference)
def resize(
  x: Float[AnyArray, "*b h w c"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "*b ho wo c"]:
  """Bilinear resize of the two axes before the last to `size` (rows, columns).

  Equal to `torch.nn.functional.interpolate(mode="bilinear", antialias=False)`.

  Args:
    x: image-like array, channels last.
    size: rows and columns of the result.
    align_corners: corner pixels' centres stay corners (TF DeepLab), instead of the pixels' outer edges.
  """
  x = jnp.asarray(x)
  if x.ndim == 4 and spatial.axis_size() > 1:
    return _resize_split(x, size, align_corners)
  # The axis that shrinks most, or grows least, goes first: less to do for the other.
  axes = sorted((-3, -2), key=lambda axis: size[axis + 3] / x.shape[axis])
  for axis in axes:
    x = _resize_axis(x, axis % x.ndim, size[axis + 3], align_corners)
  return x


def resize_logits(
  logits: Float[AnyArray, "*b h w k"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "*b ho wo k"]:
  """Logits at the decoder's resolution brought to an image's (rows, columns), bilinear, in float32."""
  return resize(jnp.asarray(logits).astype(jnp.float32), size, align_corners=align_corners)


def resize_labels(
  labels: Int[AnyArray, "*b h w"], size: tuple[int, int], *, align_corners: bool = False
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


def rescale_reference(x: Float[AnyArray, "*b h w c"], factor: float) -> Float[Array, "*b ho wo c"]:
  """The definition: the weighted pair of neighbours, rows first."""
  x = jnp.asarray(x)
  for axis in (-3, -2):
    n = x.shape[axis]
    x = _interpolate(x, axis, _neighbours(int(n * factor), n, step=1 / factor))
  return x


@defined_by(rescale_reference)
def rescale(x: Float[AnyArray, "*b h w c"], factor: float) -> Float[Array, "*b ho wo c"]:
  """Bilinear resize of the two axes before the last by `factor`; sizes are rounded down.

  Equal to `torch.nn.functional.interpolate(scale_factor=factor, mode="bilinear")`: pixels lie
  1 / factor apart exactly, also where the rounded size is not that multiple.
  """
  x = jnp.asarray(x)
  if factor == 1.0:
    return x
  x = spatial.whole(x)
  for axis in (-3, -2):
    n = x.shape[axis]
    matrix = interpolation_matrix(int(n * factor), n, step=1 / factor)
    x = _apply_matrix(jnp.asarray(matrix, x.dtype), x, axis % x.ndim)
  return spatial.split(spatial.whole(x))


def interpolation_matrix(
  out_size: int, in_size: int, *, align_corners: bool = False, step: float | None = None
) -> np.ndarray:
  """The (out_size, in_size) weights of one axis, float32; each row has at most two and sums to 1.

  `step` is the distance of neighbouring outputs in input pixels, `in_size / out_size` if not given.
  """
  low, high, weight = _neighbours(out_size, in_size, align_corners=align_corners, step=step)
  matrix = np.zeros((out_size, in_size))
  np.add.at(matrix, (np.arange(out_size), low), 1 - weight)
  np.add.at(matrix, (np.arange(out_size), high), weight)
  return matrix.astype(np.float32)


def _neighbours(out_size: int, in_size: int, *, align_corners: bool = False, step: float | None = None):
  """For each output pixel of an axis: the two input pixels, and the weight of the second."""
  index = np.arange(out_size, dtype=np.float64)
  if align_corners:
    source = index * ((in_size - 1) / (out_size - 1) if out_size > 1 else 0.0)
  else:
    source = np.maximum((index + 0.5) * (in_size / out_size if step is None else step) - 0.5, 0.0)
  low = np.minimum(np.floor(source).astype(int), in_size - 1)
  return low, np.minimum(low + 1, in_size - 1), source - low


def _interpolate(x, axis: int, neighbours):
  low, high, weight = neighbours
  weight = jnp.asarray(weight, x.dtype).reshape(-1, *[1] * (-1 - axis))
  return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


def _resize_axis(x, axis: int, out_size: int, align_corners: bool):
  in_size = x.shape[axis]
  if out_size == in_size:
    return x
  if out_size % in_size == 0 and not align_corners:
    return _enlarge_axis(x, axis, out_size // in_size)
  matrix = jnp.asarray(interpolation_matrix(out_size, in_size, align_corners=align_corners), x.dtype)
  return _apply_matrix(matrix, x, axis)


def _apply_matrix(matrix, x, axis: int):
  y = lax.dot_general(
    matrix, x, (((1,), (axis,)), ((), ())), precision=lax.Precision.HIGHEST
  )  # the new axis comes first
  return jnp.moveaxis(y, 0, axis)


def _resize_split(x, size: tuple[int, int], align_corners: bool):
  """`resize` where the rows of an image are spread over devices."""
  height = x.shape[1]
  if spatial.shards(height) == 1 or size[0] % height or align_corners:
    # The small map on every device, of which each makes its own rows.
    x = spatial.whole(x)
    if size[0] != height:
      matrix = interpolation_matrix(size[0], height, align_corners=align_corners)
      x = _apply_matrix(jnp.asarray(matrix, x.dtype), x, 1)
    return _resize_axis(spatial.split(x), 2, size[1], align_corners)
  x = _resize_axis(x, 2, size[1], align_corners)
  if size[0] == height:
    return x

  def local(x):
    return _enlarge_padded(spatial.exchange(x, 1, 1, outside="edge"), 1, size[0] // height)

  return spatial.on_rows(local, x, ())


def _enlarge_axis(x, axis: int, factor: int):
  """Whole-factor enlargement: the first and last pixel repeat beyond the edge."""
  first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, -1, None, axis=axis)
  return _enlarge_padded(jnp.concatenate([first, x, last], axis), axis, factor)


def _enlarge_padded(padded, axis: int, factor: int):
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
