"""A 1×1 convolution over the concat of several resized maps, without resizing or concatenating them.

A 1×1 convolution mixes channels and a bilinear resize mixes pixels, so the two commute,
and a concat followed by a 1×1 is a sum of 1×1s. Doing each level's part at that
level's own resolution gives the same result for a fraction of the multiplications:
a level at 1/32 joined at 1/4 costs a sixty-fourth.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers.conv import Initializer, fan_out_normal
from jaxseg.layers.resize import resize, resize_sum
from jaxseg.ops.bias import add_bias
from jaxseg.ops.definition import defined_by
from jaxseg.types import Dim

# A linear map in front of one level: kernel (c, width) and bias (width,).
Projection = tuple[Float[Array, "_ _"], Float[Array, " _"]]


def concat_conv_reference(
  levels: Sequence[Float[Array, "b _ _ _"]],
  kernel: Float[Array, "1 1 c k"],
  size: tuple[Dim, Dim],
  *,
  projections: Sequence[Projection] | None = None,
  align_corners: bool = False,
) -> Float[Array, "b h w k"]:
  """The definition: project, resize, concatenate, convolve."""
  if projections is not None:
    levels = [x @ w + b for x, (w, b) in zip(levels, projections, strict=True)]
  levels = [resize(x, size, align_corners=align_corners) for x in levels]
  return jnp.concatenate(levels, -1) @ kernel[0, 0]


@defined_by(concat_conv_reference)
def concat_conv(
  levels: Sequence[Float[Array, "b _ _ _"]],
  kernel: Float[Array, "1 1 c k"],
  size: tuple[Dim, Dim],
  *,
  projections: Sequence[Projection] | None = None,
  align_corners: bool = False,
) -> Float[Array, "b h w k"]:
  """Equal to `concat_conv_reference`.

  Args:
    levels: maps in the order of the concat, of any sizes.
    kernel: of the 1×1 convolution; its input channels are the levels' (or projections') widths in turn.
    size: rows and columns at which the levels meet.
    projections: a linear map for each level, applied before the resize.
    align_corners: corner rule of the resize.
  """
  coarse, total, first = [], None, 0
  for i, x in enumerate(levels):
    width = x.shape[-1] if projections is None else projections[i][0].shape[-1]
    part = kernel[0, 0, first : first + width]
    first += width
    if x.shape[1] * x.shape[2] > size[0] * size[1]:
      x = resize(x, size, align_corners=align_corners)
    x = x @ part if projections is None else _project(x, projections[i], part)
    if x.shape[1:3] != tuple(size):
      coarse.append(x)
    else:
      total = x if total is None else total + x
  if coarse:
    resized = resize_sum(coarse, size, align_corners=align_corners)
    total = resized if total is None else total + resized
  return total


def _project(x, projection: Projection, part):
  """(x · w + b) · part; the two matrices are multiplied first where that is less work."""
  w, b = projection
  pixels = x.size // x.shape[-1]
  if pixels > x.shape[-1]:
    return add_bias(x @ (w @ part), b @ part)
  return add_bias(x @ w, b) @ part


class ConcatConv(nn.Module):
  """`concat_conv` with its parameter: `kernel` (1, 1, Σ widths, features), no bias."""

  features: int
  kernel_init: Initializer = fan_out_normal()
  align_corners: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    levels: Sequence[Float[Array, "b _ _ _"]],
    size: tuple[Dim, Dim],
    *,
    projections: Sequence[Projection] | None = None,
  ) -> Float[Array, "b h w k"]:
    widths = [p[0].shape[-1] for p in projections] if projections else [x.shape[-1] for x in levels]
    kernel = self.param("kernel", self.kernel_init, (1, 1, sum(widths), self.features))
    kernel, *levels = nn.dtypes.promote_dtype(kernel, *levels, dtype=self.dtype)
    if projections is not None:
      projections = [tuple(nn.dtypes.promote_dtype(*p, dtype=kernel.dtype)) for p in projections]
    return concat_conv(levels, kernel, size, projections=projections, align_corners=self.align_corners)
