"""The 16 corruptions in 5 severities by which segmentation models are tested, on 8-bit images, seeded.

Hendrycks and Dietterich: Benchmarking neural network robustness to common corruptions and perturbations
(ICLR 2019), which publishes the parameters below with ImageNet-C; the sixteen that Kamann and Rother (CVPR
2020) apply to Cityscapes, and after them SegFormer. Written from the parameters, on OpenCV. Two differ from
the published programs: glass_blur moves all pixels at once and not one after the other, and frost has drawn
ice unless it is given the authors' photographs, which cannot be shipped.

Images of other channels: noise, blur, fog, contrast and brightness (whose HSV value is the largest channel)
are the same formulas, JPEG compresses each channel as a grey image. Snow, spatter and frost have colours: a
grey image gets their grey, and images of two or of four and more channels cannot have them; saturate is for
RGB alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg import catalog, lazy
from jaxseg.errors import UserError

Image = UInt8[np.ndarray, "h w c"]
Unit = Float[np.ndarray, "h w c"]  # the same in 0..1
Photo = UInt8[np.ndarray, "_ _ 3"]
Number = int | float

SEVERITIES = (1, 2, 3, 4, 5)
_TURQUOISE = (175, 238, 238)  # water in spatter
_MUD = (63, 42, 20)
_IN_COLORS = ("snow", "spatter", "frost")


def corruptions_for(channels: int) -> tuple[str, ...]:
  """The names of those that images of so many channels can have."""
  if channels == 3:
    return tuple(CORRUPTIONS)
  without = ("saturate",) if channels == 1 else (*_IN_COLORS, "saturate")
  return tuple(name for name in CORRUPTIONS if name not in without)


def corrupt(
  image: Image, name: str, severity: int, *, rng: np.random.Generator, frost: Sequence[Photo] = ()
) -> Image:
  """The image with the corruption.

  Args:
    image: RGB, or of other channels.
    name: one of `CORRUPTIONS`.
    severity: 1 to 5.
    rng: of what is drawn; equal generators give equal images.
    frost: photographs of ice for "frost", of which one is drawn; drawn ice without any.

  Raises:
    UserError: no such corruption or severity, or a corruption in colours of another image.
  """
  if name not in CORRUPTIONS:
    raise UserError(f"there is no corruption {name!r}; {catalog.suggestion(name, CORRUPTIONS)}")
  if severity not in SEVERITIES:
    raise UserError(f"the severity is {severity!r}; expected 1 to 5")
  channels = image.shape[-1]
  if name not in corruptions_for(channels):
    raise UserError(f"{name} is of colours, which images of {channels} channels do not have; leave it out")
  function, parameters = CORRUPTIONS[name]
  values = parameters[severity - 1]
  if name == "jpeg_compression":
    return _jpeg(image, values)
  unit = image.astype(np.float32) / 255
  extra = {"photos": frost} if name == "frost" else {}
  if channels == 1 and name in _IN_COLORS:
    cv2 = lazy.load("cv2")
    rgb = np.clip(function(np.repeat(unit, 3, -1), values, rng, **extra), 0, 1).astype(np.float32)
    unit = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
  else:
    unit = function(unit, values, rng, **extra)
  return (np.clip(unit, 0, 1) * 255).astype(np.uint8).reshape(image.shape)


def _gaussian_noise(x: Unit, scale: Number, rng: np.random.Generator) -> Unit:
  return x + rng.normal(0, scale, x.shape).astype(np.float32)


def _shot_noise(x: Unit, photons: Number, rng: np.random.Generator) -> Unit:
  return rng.poisson(x * photons).astype(np.float32) / photons


def _impulse_noise(x: Unit, share: Number, rng: np.random.Generator) -> Unit:
  salt_or_pepper = (rng.random(x.shape) < 0.5).astype(np.float32)
  return np.where(rng.random(x.shape) < share, salt_or_pepper, x)


def _speckle_noise(x: Unit, scale: Number, rng: np.random.Generator) -> Unit:
  return x + x * rng.normal(0, scale, x.shape).astype(np.float32)


def _gaussian_blur(x: Unit, sigma: Number, rng: np.random.Generator) -> Unit:
  del rng
  return _blurred(x, sigma)


def _defocus_blur(x: Unit, values: tuple[Number, Number], rng: np.random.Generator) -> Unit:
  del rng
  radius, soft = values
  reach, sides = (8, 3) if radius <= 8 else (radius, 5)
  rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
  disk = (rows**2 + columns**2 <= radius**2).astype(np.float32)
  cv2 = lazy.load("cv2")
  kernel = cv2.GaussianBlur(disk / disk.sum(), (sides, sides), soft)
  return cv2.filter2D(x, -1, kernel).reshape(x.shape)  # OpenCV drops the only channel of a grey image


def _glass_blur(x: Unit, values: tuple[Number, int, int], rng: np.random.Generator) -> Unit:
  sigma, reach, rounds = values
  x = _blurred(x, sigma)
  rows, columns = np.indices(x.shape[:2])
  inside = (slice(reach, -reach), slice(reach, -reach))
  for _ in range(rounds):
    down, right = rng.integers(-reach, reach, (2, *rows[inside].shape))
    x = x.copy()
    x[inside] = x[rows[inside] + down, columns[inside] + right]
  return _blurred(x, sigma)


def _motion_blur(x: Unit, values: tuple[Number, Number], rng: np.random.Generator) -> Unit:
  return _moved(x, *values, angle=rng.uniform(-45, 45))


def _brightness(x: Unit, more: Number, rng: np.random.Generator) -> Unit:
  del rng
  if x.shape[-1] == 3:
    return _in_hsv(x, 2, lambda value: value + more)
  value = x.max(-1, keepdims=True)
  return np.where(value > 0, x * (np.minimum(value + more, 1) / np.maximum(value, 1e-6)), more)


def _saturate(x: Unit, values: tuple[Number, Number], rng: np.random.Generator) -> Unit:
  del rng
  factor, more = values
  return _in_hsv(x, 1, lambda saturation: saturation * factor + more)


def _contrast(x: Unit, factor: Number, rng: np.random.Generator) -> Unit:
  del rng
  mean = x.mean((0, 1), keepdims=True)
  return (x - mean) * factor + mean


def _fog(x: Unit, values: tuple[Number, Number], rng: np.random.Generator) -> Unit:
  thickness, decay = values
  largest = x.max()
  x = x + thickness * _plasma(x.shape, decay, rng)[..., None]
  return x * largest / (largest + thickness)


def _frost(
  x: Unit, values: tuple[Number, Number], rng: np.random.Generator, photos: Sequence[Photo] = ()
) -> Unit:
  share, ice_share = values
  height, width = x.shape[:2]
  if not photos:
    return share * x + ice_share * _ice(x.shape, rng)
  cv2 = lazy.load("cv2")
  photo = photos[rng.integers(len(photos))]
  # As small as covers the image, with a tenth to choose a place from.
  factor = 1.1 * max(1.0, height / photo.shape[0], width / photo.shape[1])
  size = tuple(int(np.ceil(side * factor)) for side in photo.shape[1::-1])
  photo = cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
  top, left = (rng.integers(photo.shape[axis] - x.shape[axis]) for axis in (0, 1))
  return share * x + ice_share * photo[top : top + height, left : left + width]


def _snow(x: Unit, values: Sequence[Number], rng: np.random.Generator) -> Unit:
  mean, scale, zoom, least, radius, sigma, share = values
  cv2 = lazy.load("cv2")
  height, width = x.shape[:2]
  flakes = rng.normal(mean, scale, (height, width)).astype(np.float32)
  rows, columns = (int(np.ceil(side / zoom)) for side in (height, width))
  top, left = (height - rows) // 2, (width - columns) // 2
  flakes = cv2.resize(flakes[top : top + rows, left : left + columns], (width, height))
  flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
  flakes = _moved(flakes, int(radius), sigma, angle=rng.uniform(-135, -45))[..., None]
  grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
  x = share * x + (1 - share) * np.maximum(x, grey * 1.5 + 0.5)
  return x + flakes + flakes[::-1, ::-1]


def _spatter(x: Unit, values: Sequence[Number], rng: np.random.Generator) -> Unit:
  mean, scale, sigma, least, strength, is_mud = values
  cv2 = lazy.load("cv2")
  liquid = _blurred(rng.normal(mean, scale, x.shape[:2]).astype(np.float32), sigma)
  liquid[liquid < least] = 0
  if is_mud:
    cover = _blurred((liquid > least).astype(np.float32), strength)
    cover = np.where(cover < 0.8, 0, cover)[..., None]
    return x * (1 - cover) + cover * np.float32(_MUD) / 255
  drops = np.clip(liquid * 255, 0, 255).astype(np.uint8)
  # Light and shade on the edges of the drops: an emboss of the distance to their outlines.
  distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
  distance = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
  emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
  shade = cv2.blur(cv2.filter2D(distance, cv2.CV_8U, emboss), (3, 3)).astype(np.float32)
  cover = drops * shade
  cover *= strength / max(float(cover.max()), 1e-6)
  return x + cover[..., None] * np.float32(_TURQUOISE) / 255


def _jpeg(image: Image, quality: int) -> Image:
  cv2 = lazy.load("cv2")
  if image.shape[-1] != 3:
    how = [cv2.IMWRITE_JPEG_QUALITY, quality]
    bands = [
      cv2.imencode(".jpg", np.ascontiguousarray(image[..., c]), how)[1] for c in range(image.shape[-1])
    ]
    return np.stack([cv2.imdecode(band, cv2.IMREAD_GRAYSCALE) for band in bands], -1)
  data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
  return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _blurred(x: Any, sigma: Number) -> Any:
  cv2 = lazy.load("cv2")
  side = 2 * int(4 * sigma + 0.5) + 1
  return cv2.GaussianBlur(x, (side, side), sigma, borderType=cv2.BORDER_REPLICATE).reshape(x.shape)


def _moved(x: Any, radius: int, sigma: Number, *, angle: Number) -> Any:
  """Motion blur: the mean over a way of 2 radius + 1 pixels in a direction (degrees), later ones weaker."""
  cv2 = lazy.load("cv2")
  steps = np.arange(2 * radius + 1)
  weights = np.exp(-(steps**2) / (2 * sigma**2))
  right = -np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
  down = -np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
  reach = 2 * radius + 1
  kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
  np.add.at(kernel, (reach - down, reach - right), weights / weights.sum())
  return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE).reshape(x.shape)


def _in_hsv(x: Unit, channel: int, change: Callable[[Any], Any]) -> Unit:
  cv2 = lazy.load("cv2")
  hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
  hsv[..., channel] = np.clip(change(hsv[..., channel]), 0, 1)
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _plasma(shape: Sequence[int], decay: Number, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
  """Clouds in 0..1 by the diamond-square algorithm, whose steps of half the size are weaker by `decay`²."""
  size = 1 << (max(shape[:2]) - 1).bit_length()
  heights = np.zeros((size, size))
  step, scale = size, 100.0
  while step > 1:
    half = step // 2

    def drawn(like: np.ndarray, scale: Number = scale) -> np.ndarray:
      return scale * rng.uniform(-scale, scale, like.shape)

    corners = heights[::step, ::step]
    rows = corners + np.roll(corners, -1, 0)
    squares = (rows + np.roll(rows, -1, 1)) / 4
    squares += drawn(squares)
    heights[half::step, half::step] = squares
    across = (corners + np.roll(corners, -1, 1) + squares + np.roll(squares, 1, 0)) / 4
    heights[::step, half::step] = across + drawn(across)
    down = (corners + np.roll(corners, -1, 0) + squares + np.roll(squares, 1, 1)) / 4
    heights[half::step, ::step] = down + drawn(down)
    step, scale = half, scale / decay
  heights -= heights.min()
  return (heights / heights.max())[: shape[0], : shape[1]].astype(np.float32)


def _ice(shape: Sequence[int], rng: np.random.Generator) -> Unit:
  """Drawn ice: bright ridges of clouds at three scales, blue in the hollows, thicker towards one corner."""
  ice = np.zeros(shape[:2], np.float32)
  for decay, share in ((1.6, 0.5), (1.35, 0.3), (1.2, 0.2)):
    ice += share * (1 - np.abs(2 * _plasma(shape, decay, rng) - 1)) ** 2
  ice = np.clip((ice - ice.min()) / (ice.max() - ice.min()), 0, 1)
  ice *= 0.6 + 0.4 * _plasma(shape, 3.0, rng)
  return np.stack([ice**1.15, ice**1.05, ice**0.95], axis=-1)


# Name → (function, its parameters in severities 1 to 5), in four kinds: noise, blur, weather, digital.
CORRUPTIONS: dict[str, tuple[Callable[..., Any] | None, tuple[Any, ...]]] = {
  "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
  "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
  "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
  "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
  "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
  "defocus_blur": (_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
  "glass_blur": (_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
  "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
  "snow": (
    _snow,
    (
      (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
      (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
      (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
      (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
      (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
  ),
  "spatter": (
    _spatter,
    (
      (0.65, 0.3, 4, 0.69, 0.6, False),
      (0.65, 0.3, 3, 0.68, 0.6, False),
      (0.65, 0.3, 2, 0.68, 0.5, False),
      (0.65, 0.3, 1, 0.65, 1.5, True),
      (0.67, 0.4, 1, 0.65, 1.5, True),
    ),
  ),
  "fog": (_fog, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))),
  "frost": (_frost, ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
  "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
  "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
  "saturate": (_saturate, ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))),
  "jpeg_compression": (None, (25, 18, 15, 10, 7)),
}
KINDS = {
  "noise": tuple(CORRUPTIONS)[:4],
  "blur": tuple(CORRUPTIONS)[4:8],
  "weather": tuple(CORRUPTIONS)[8:12],
  "digital": tuple(CORRUPTIONS)[12:],
}
