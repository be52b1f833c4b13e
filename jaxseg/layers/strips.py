"""MSCA's convolutions on a map whose rows may lie over several devices: one exchange for all of them."""

import functools
from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.upsampled import for_own_images
from jaxseg.ops.msca import Weights, msca, msca_halo


def multi_scale_strips(
  x: Float[Array, "b h w c"], square: Weights, strips: Sequence[tuple[Weights, Weights]]
) -> Float[Array, "b h w c"]:
  """`ops.msca.msca` of the whole map, or of each device's rows with their halo."""
  size = square[0].shape[0]
  halo, around = msca_halo(size, [column[0].shape[0] for _, column in strips]), (size - 1) // 2
  height = x.shape[1]
  if spatial.shards(height, reach=halo) == 1:
    spatial.ran_whole()
    on_devices = functools.partial(for_own_images, same=1)
    return spatial.split(spatial.whole(msca(spatial.whole(x), square, strips, on_devices=on_devices)))
  rows = height // spatial.shards(height)

  def local(x, square, strips):
    x = spatial.exchange(x, halo, halo)
    inside = spatial.inside(height, halo - around, halo - around, rows)[0, :, 0, 0]
    return msca(x, square, strips, inside=inside)

  return spatial.on_rows(local, x, (square, tuple(strips)))
