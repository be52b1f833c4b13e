"""`ops.resize` of maps whose rows may be spread over devices: the same functions, by the same names."""

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.ops import resize as ops
from jaxseg.ops.definition import defined_by
from jaxseg.types import AnyArray, Dim


@defined_by(ops.resize_reference)
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
  if x.ndim == 4 and spatial.axis_size() > 1:
    return _resize_split(x, size, align_corners)
  return ops.resize(x, size, align_corners=align_corners)


@defined_by(ops.resize_sum_reference)
def resize_sum(
  maps: Sequence[Float[Array, "b _ _ c"]], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "b ho wo c"]:
  """The sum of several maps, each brought to `size` as by `resize`."""
  if spatial.axis_size() > 1:
    return functools.reduce(operator.add, (resize(x, size, align_corners=align_corners) for x in maps))
  return ops.resize_sum(maps, size, align_corners=align_corners)


def resize_logits(
  logits: Float[AnyArray, "*b h w k"], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "*b ho wo k"]:
  """Logits at the decoder's resolution brought to an image's (rows, columns), bilinear, in float32."""
  return resize(jnp.asarray(logits).astype(jnp.float32), size, align_corners=align_corners)


@defined_by(ops.rescale_reference)
def rescale(x: Float[AnyArray, "*b h w c"], factor: float) -> Float[Array, "*b ho wo c"]:
  """Bilinear resize of the two axes before the last by `factor`; sizes are rounded down.

  Equal to `torch.nn.functional.interpolate(scale_factor=factor, mode="bilinear")`: pixels lie
  1 / factor apart exactly, also where the rounded size is not that multiple.
  """
  x = jnp.asarray(x)
  if factor == 1.0:
    return x
  return spatial.split(spatial.whole(ops.rescale(spatial.whole(x), factor)))


def _resize_split(x, size: tuple[Dim, Dim], align_corners: bool):
  """`resize` where the rows of an image are spread over devices."""
  height = x.shape[1]
  if spatial.shards(height) == 1 or size[0] % height or align_corners:
    # The small map on every device, of which each makes its own rows.
    x = spatial.whole(x)
    if size[0] != height:
      x = ops.apply_matrix(ops.interpolation_matrix(size[0], height, align_corners=align_corners), x, 1)
    return ops.resize_axis(spatial.split(x), 2, size[1], align_corners=align_corners)
  x = ops.resize_axis(x, 2, size[1])
  if size[0] == height:
    return x

  def local(x):
    return ops.enlarge_padded(spatial.exchange(x, 1, 1, outside="edge"), 1, size[0] // height)

  return spatial.on_rows(local, x, ())
