"""Mix-FFN on a map whose rows may lie over several devices."""

import functools
from collections.abc import Callable

from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.upsampled import for_own_images
from jaxseg.ops import mix_ffn as ops
from jaxseg.ops.depthwise import depthwise_conv


def mix_ffn(
  x: Float[Array, "b h w c"],
  fc1: ops.Weights,
  dwconv: ops.Weights,
  fc2: ops.Weights,
  *,
  drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "b h w k"]:
  """`ops.mix_ffn.mix_ffn` of the whole map; where its rows are split, one operation after the other."""
  if spatial.shards(x.shape[1], reach=1) == 1:
    spatial.ran_whole()
    on_devices = functools.partial(for_own_images, same=3)
    y = ops.mix_ffn(spatial.whole(x), fc1, dwconv, fc2, drop=drop, on_devices=on_devices)
    return spatial.split(spatial.whole(y))

  def conv(y, kernel):
    return spatial.windowed(_three_by_three, y, (kernel,), size=3, padding=(1, 1))

  return ops.mix_ffn_reference(x, fc1, dwconv, fc2, conv=conv, drop=drop)


def _three_by_three(y, kernel, rows):
  return depthwise_conv(y, kernel, padding=(rows, (1, 1)))
