"""The nouns every room shares: images, labels, features, outputs, batches."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

# A pixel without a label. Every loss and metric drops it; every transform fills with it.
IGNORE_LABEL = 255

# Entry points take NumPy or JAX arrays.
AnyArray = jax.Array | np.ndarray

# Rows or columns: an int, or a symbolic dimension of `jax.export`, whose type has no public name.
Dim = Any

# Normalised by the model's `Preprocess` record: RGB, or as many other channels as `in_channels` says.
Image = Float[AnyArray, "b h w c"]
Label = Int[AnyArray, "b h w"]

# "stage1".."stage4" (CGNet: "stage1".."stage3"), fine to coarse. Keys are stage
# names, not strides: with output_stride=8 several stages share a stride.
Features = dict[str, Float[AnyArray, "b _ _ _"]]

# Always holds "logits": float32, at the decoder's own resolution. Any further key
# ending in "_logits" is an extra supervised map.
Outputs = dict[str, Float[AnyArray, "b _ _ k"]]

# "image", "label", and whatever else a pipeline carries along ("id").
Batch = dict[str, AnyArray]


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """How a model wants its image: subtract `mean`, divide by `std`, both for RGB in 0..255.

  Images of other channels than three have as many means, in the order of their channels.

  `channel_order="bgr"` swaps the channels last (Caffe weights); `mean` and `std`
  stay in RGB order. `size` and `resize` say how the published test pipeline
  resizes an image before the network; `None` leaves it as it is. `value_range` is
  (low, high), what becomes 0 and 255 in images of more than 8 bits before all
  that; () where nobody said it.
  """

  mean: tuple[float, ...] = (123.675, 116.28, 103.53)
  std: tuple[float, ...] = (58.395, 57.12, 57.375)
  channel_order: Literal["rgb", "bgr"] = "rgb"
  size: tuple[int, int] | None = None
  resize: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
  value_range: tuple[float, ...] = ()

  @property
  def channels(self) -> int:
    """Of an image."""
    return len(self.mean)

  def __call__(self, image: UInt8[AnyArray, "*b h w c"]) -> Float[AnyArray, "*b h w c"]:
    """The normalised float32 image; NumPy in, NumPy out, and the same for JAX arrays."""
    mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
    image = (image.astype(np.float32) - mean) / std
    return image[..., ::-1] if self.channel_order == "bgr" else image
