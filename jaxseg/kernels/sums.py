"""Sums over pixels that come out the same however the pixels are spread over devices.

A ReLU or PReLU has a kink: where rounding moves a pixel over it, the pixel's gradient jumps. With float32
sums, whose rounding depends on which device adds what, BatchNorm moved about one pixel in a million in
each step of CGNet, and after ten steps the loss differed by a thousandth between one device and eight.
On a CPU they are therefore in float64, as PyTorch accumulates there; of large arrays all but the sum along
a row, which is never split, though XLA may order it in another way for another shape. On accelerators,
whose float64 is slow or not there, they are float32 sums.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Numbers up to which float64 throughout costs nothing; above, up to 1.6 times the sum by rows.
_SMALL = 2**19


def pixel_sum_reference(x: Float[Array, "*b c"]) -> Float[Array, " c"]:
  """The definition: the sum over all axes but the last, in float32."""
  return x.astype(jnp.float32).sum(tuple(range(x.ndim - 1)))


def pixel_sum(x: Float[Array, "*b c"]) -> Float[Array, " c"]:
  """Equal to `pixel_sum_reference`, and on a CPU to the nearest float32 or nearly.

  It has no derivative of its own: for use inside of one.
  """
  return lax.platform_dependent(x, cpu=_by_rows, default=pixel_sum_reference)


@jax.custom_vjp
def image_mean(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
  """The mean feature of each image in float32, of sums as in `pixel_sum`."""
  return _image_sum(x) / (x.shape[1] * x.shape[2])


def _image_mean_fwd(x):
  return image_mean(x), x


def _image_mean_bwd(x, dy):
  spread = jnp.broadcast_to((dy / (x.shape[1] * x.shape[2]))[:, None, None], x.shape)
  return (spread.astype(x.dtype),)


image_mean.defvjp(_image_mean_fwd, _image_mean_bwd)


@jax.custom_vjp
def scale_images(x: Float[Array, "b h w c"], scale: Float[Array, "b c"]) -> Float[Array, "b h w c"]:
  """`x` times one factor for each image and channel, whose gradient is a sum as in `pixel_sum`."""
  return x * scale[:, None, None].astype(x.dtype)


def _scale_images_fwd(x, scale):
  return scale_images(x, scale), (x, scale)


def _scale_images_bwd(residuals, dy):
  x, scale = residuals
  return scale_images(dy, scale), _image_sum(dy.astype(jnp.float32) * x.astype(jnp.float32)).astype(
    scale.dtype
  )


scale_images.defvjp(_scale_images_fwd, _scale_images_bwd)


@jax.custom_vjp
def shift_images(x: Float[Array, "b h w c"], shift: Float[Array, "b c"]) -> Float[Array, "b h w c"]:
  """`x` plus one number for each image and channel, whose gradient is a sum as in `pixel_sum`."""
  return x + shift[:, None, None].astype(x.dtype)


def _shift_images_fwd(x, shift):
  return shift_images(x, shift), shift


def _shift_images_bwd(shift, dy):
  return dy, _image_sum(dy).astype(shift.dtype)


shift_images.defvjp(_shift_images_fwd, _shift_images_bwd)


def _image_sum(x):
  return lax.platform_dependent(
    x,
    cpu=lambda x: _double_sum(_row_sum(x), (1, 2)),
    default=lambda x: x.astype(jnp.float32).sum((1, 2)),
  )


def _by_rows(x):
  x = _row_sum(x)
  return _double_sum(x, tuple(range(x.ndim - 1)))


def _row_sum(x):
  # A plain sum along the rows is what the vector units do fast; what is left is small.
  x = x.astype(jnp.float32)
  return x if x.ndim < 3 or x.size <= _SMALL else x.sum(-2, keepdims=True)


def _double_sum(x, axes):
  with jax.enable_x64(True):
    return lax.convert_element_type(lax.convert_element_type(x, jnp.float64).sum(axes), jnp.float32)
