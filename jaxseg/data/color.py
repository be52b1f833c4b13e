"""Photometric distortion on the device: mmsegmentation's rule, 8-bit at every step.

brightness → [contrast] → saturation → hue → [contrast]; each step with probability 1/2,
contrast at the first or the second place by a coin of its own. Every step ends in
uint8, and saturation and hue work in OpenCV's 8-bit HSV (hue 0 to 179), so results are
those of the OpenCV pipelines.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from jaxseg.types import AnyArray

BRIGHTNESS = 32.0  # ± grey levels
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18  # -18 to 17 half-degrees
_HSV_SHIFT = 12  # OpenCV's fixed point

Plane = Float[AnyArray, "*b h w"]


class ColorDraws(NamedTuple):
  """What is done to each image of a batch; a step whose `apply_` is false leaves its image alone."""

  apply_brightness: Bool[AnyArray, "b"]
  brightness: Float[AnyArray, "b"]  # added
  apply_contrast: Bool[AnyArray, "b"]
  contrast: Float[AnyArray, "b"]  # factor
  contrast_first: Bool[AnyArray, "b"]
  apply_saturation: Bool[AnyArray, "b"]
  saturation: Float[AnyArray, "b"]  # factor
  apply_hue: Bool[AnyArray, "b"]
  hue: Int[AnyArray, "b"]  # added, in half-degrees


def draw(key: Shaped[Array, "..."], batch: int) -> ColorDraws:
  """Independent draws for `batch` images, each from its own key."""

  def one(key):
    coins, brightness, contrast, saturation, hue = jax.random.split(key, 5)
    on = jax.random.bernoulli(coins, shape=(5,))
    return ColorDraws(
      apply_brightness=on[0],
      brightness=jax.random.uniform(brightness, minval=-BRIGHTNESS, maxval=BRIGHTNESS),
      apply_contrast=on[1],
      contrast=jax.random.uniform(contrast, minval=CONTRAST[0], maxval=CONTRAST[1]),
      contrast_first=on[2],
      apply_saturation=on[3],
      saturation=jax.random.uniform(saturation, minval=SATURATION[0], maxval=SATURATION[1]),
      apply_hue=on[4],
      hue=jax.random.randint(hue, (), -HUE, HUE),
    )

  return jax.vmap(one)(jax.random.split(key, batch))


def distort(
  image: UInt8[AnyArray, "b h w 3"] | Float[AnyArray, "b h w 3"], key: Shaped[Array, "..."]
) -> UInt8[Array, "b h w 3"]:
  """A randomly distorted batch of RGB images in 0..255 (floats are cut to whole grey levels)."""
  return apply(image, draw(key, image.shape[0]))


def apply(
  image: UInt8[AnyArray, "b h w 3"] | Float[AnyArray, "b h w 3"], draws: ColorDraws
) -> UInt8[Array, "b h w 3"]:
  """Distorts RGB images in 0..255 by the given draws."""
  # Whole numbers in float32 throughout: exact, and no conversion between the steps. A plane a
  # channel: a last axis of three would keep the vector units idle.
  image = jnp.asarray(image)
  rgb = tuple(_to_byte(image[..., i].astype(jnp.float32)) for i in range(3))
  d = ColorDraws(*(jnp.asarray(field)[:, None, None] for field in draws))  # b 1 1
  rgb = _where(d.apply_brightness, (_to_byte(x + d.brightness) for x in rgb), rgb)
  rgb = _where(d.apply_contrast & d.contrast_first, (_to_byte(x * d.contrast) for x in rgb), rgb)
  h, s, v = _loop_of_its_own(_planes_to_hsv(*_loop_of_its_own(rgb)))
  rgb = _where(d.apply_saturation, _planes_to_rgb(h, _to_byte(s * d.saturation), v), rgb)
  h, s, v = _loop_of_its_own(_planes_to_hsv(*_loop_of_its_own(rgb)))
  rgb = _where(d.apply_hue, _planes_to_rgb(jnp.mod(h + d.hue.astype(jnp.float32), 180.0), s, v), rgb)
  rgb = _where(d.apply_contrast & ~d.contrast_first, (_to_byte(x * d.contrast) for x in rgb), rgb)
  return jnp.stack([x.astype(jnp.uint8) for x in rgb], axis=-1)


def _loop_of_its_own(planes: tuple[Plane, ...]) -> tuple[Plane, ...]:
  """The planes in memory: XLA:CPU would else compute each anew wherever it is used, hundreds of times."""
  return jax.lax.optimization_barrier(planes)


def _where(on: Bool[Array, "b 1 1"], changed: Iterable[Plane], planes: Iterable[Plane]) -> tuple[Plane, ...]:
  return tuple(jnp.where(on, new, old) for new, old in zip(changed, planes, strict=True))


def zero_padding(image: Float[AnyArray, "b h w c"], box: Int[AnyArray, "b 4"]) -> Float[Array, "b h w c"]:
  """0 outside of each image's (top, left, bottom, right), as when padding follows normalisation."""
  return jnp.where(inside_boxes(box, image.shape[1:3]), image, 0)


def inside_boxes(
  box: Int[AnyArray, "b 4"], shape: tuple[int, int]
) -> Bool[Array, "b {shape[0]} {shape[1]} 1"]:
  """Whether each pixel of `shape` (h, w) lies in its image's (top, left, bottom, right)."""
  top, left, bottom, right = (jnp.asarray(box)[:, i, None] for i in range(4))
  y, x = jnp.arange(shape[0]), jnp.arange(shape[1])
  rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
  return (rows[:, :, None] & columns[:, None, :])[..., None]


def rgb_to_hsv(rgb: Float[Array, "*b h w 3"]) -> tuple[Plane, Plane, Plane]:
  """OpenCV's 8-bit RGB → HSV on whole numbers 0..255: hue 0..179, saturation and value 0..255."""
  return _planes_to_hsv(*(rgb[..., i] for i in range(3)))


def _planes_to_hsv(r: Plane, g: Plane, b: Plane) -> tuple[Plane, Plane, Plane]:
  r, g, b = (x.astype(jnp.int32) for x in (r, g, b))
  value = jnp.maximum(jnp.maximum(r, g), b)
  range_ = value - jnp.minimum(jnp.minimum(r, g), b)
  half = 1 << (_HSV_SHIFT - 1)
  saturation = (range_ * _reciprocal(255, value) + half) >> _HSV_SHIFT
  sector = jnp.where(value == r, g - b, jnp.where(value == g, b - r + 2 * range_, r - g + 4 * range_))
  hue = (sector * _reciprocal(30, range_) + half) >> _HSV_SHIFT
  hue = jnp.where(hue < 0, hue + 180, hue)
  return hue.astype(jnp.float32), saturation.astype(jnp.float32), value.astype(jnp.float32)


def _reciprocal(numerator: int, x: Int[Array, "..."]) -> Int[Array, "..."]:
  """round(numerator · 2^12 / x), 0 where x is 0: OpenCV's division table; x up to 255."""
  # Exact: at most 20 bits before the point and four after it decide. Faster than whole numbers.
  quotient = np.float32(numerator << _HSV_SHIFT) / jnp.maximum(x, 1).astype(jnp.float32)
  return jnp.where(x > 0, jnp.floor(quotient + 0.5).astype(jnp.int32), 0)


def hsv_to_rgb(hue: Plane, saturation: Plane, value: Plane) -> Float[Array, "*b h w 3"]:
  """OpenCV's 8-bit HSV → RGB; whole numbers 0..255."""
  return jnp.stack(_planes_to_rgb(hue, saturation, value), axis=-1)


def _planes_to_rgb(hue: Plane, saturation: Plane, value: Plane) -> tuple[Plane, Plane, Plane]:
  # OpenCV scales to 0..1 and back and then truncates, so the order of the roundings decides between
  # two neighbouring grey levels; one level can move an 8-bit hue by two degrees in the next step.
  h, s, v = _scaled(hue, 6 / 180), _scaled(saturation, 1 / 255), _scaled(value, 1 / 255)
  sector = jnp.floor(h)
  f = h - sector
  p, q, t = v * (1 - s), v * _one_minus_product(s, f), v * _one_minus_product(s, 1 - f)
  v, p, q, t = (jnp.floor(x * 255.0) for x in (v, p, q, t))

  def pick(*of_sectors: Plane) -> Plane:
    chosen = of_sectors[5]
    for index in range(5):
      chosen = jnp.where(sector == index, of_sectors[index], chosen)
    return chosen

  return pick(v, q, p, p, t, v), pick(t, v, v, q, p, p), pick(p, p, t, v, v, q)


def _scaled(x: Float[Array, "*n"], factor: float) -> Float[Array, "*n"]:
  """The product with float32(factor), rounded once also where a compiler fuses; x is whole, up to 255."""
  high = np.float32(np.round(factor * 2**16) / 2**16)  # at most 12 bits, so that both products are exact
  return x * high + x * (np.float32(factor) - high)


def _one_minus_product(x: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """1 - x · y, rounded once as OpenCV's fused multiply-add has it; 0 to 1."""
  x_high, y_high = jnp.floor(x * 2048) / 2048, jnp.floor(y * 2048) / 2048
  return (1 - x_high * y_high) - (x_high * (y - y_high) + (x - x_high) * y)


def _to_byte(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
  """Clipped to 0..255 and truncated, as a cast to uint8 does."""
  return jnp.floor(jnp.clip(x, 0.0, 255.0))
