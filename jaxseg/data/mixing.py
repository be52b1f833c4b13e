"""Batch-level augmentation of image classifiers, on the device: random erasing, mixup and cutmix.

The rules are timm's, with which DeiT (https://arxiv.org/abs/2012.12877) was trained, and
"as DeiT" is what the papers of SegNeXt and SegFormer say about their ImageNet training. Default
values are DeiT's (its table of hyper-parameters); that MSCAN and MiT changed none of them is
confirmed by no source. What is drawn is separate from what is done with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxseg.data.color import inside_boxes
from jaxseg.errors import UserError
from jaxseg.types import AnyArray

ERASE_ATTEMPTS = 10  # rectangles tried until one lies inside of the image


class MixDraws(NamedTuple):
  """How a batch is mixed with itself in reverse order."""

  cutmix: Bool[AnyArray, ""]  # else mixup
  keep: Float[AnyArray, ""]  # share of an image's own label, and in mixup of its pixels
  box: Int[AnyArray, "4"]  # cutmix: (top, left, bottom, right) that shows the other image


def soft_labels(
  label: Int[AnyArray, "b"], *, num_classes: int, smoothing: float = 0.1
) -> Float[Array, "b {num_classes}"]:
  """One-hot rows with `smoothing` spread evenly over all classes; each sums to 1."""
  hot = jax.nn.one_hot(jnp.asarray(label), num_classes)
  return hot * (1 - smoothing) + smoothing / num_classes


def draw_mix(
  key: Shaped[Array, "..."],
  shape: tuple[int, int],
  *,
  mixup_alpha: float = 0.8,
  cutmix_alpha: float = 1.0,
  switch_probability: float = 0.5,
) -> MixDraws:
  """Draws for a batch of images of `shape` (h, w).

  An alpha of 0 switches its method off; with both on, cutmix is taken with
  `switch_probability`. The share is Beta(alpha, alpha). Cutmix's box covers the rest of the area,
  its centre is anywhere, and the share is corrected for what the border cuts off.

  Raises:
    UserError: a negative alpha.
  """
  if min(mixup_alpha, cutmix_alpha) < 0:
    raise UserError(f"mixup_alpha is {mixup_alpha} and cutmix_alpha {cutmix_alpha}; expected 0 (off) or more")
  coin, mixup, cutmix, row, column = jax.random.split(key, 5)
  if mixup_alpha and cutmix_alpha:
    use_cutmix = jax.random.bernoulli(coin, switch_probability)
  else:
    use_cutmix = jnp.asarray(bool(cutmix_alpha))
  shared, uncut = _beta(mixup, mixup_alpha), _beta(cutmix, cutmix_alpha)
  h, w = shape
  box = _cut_box(uncut, shape, jax.random.randint(row, (), 0, h), jax.random.randint(column, (), 0, w))
  area = (box[2] - box[0]) * (box[3] - box[1])
  keep = jnp.where(use_cutmix, 1 - area / (h * w), shared)
  return MixDraws(cutmix=use_cutmix, keep=keep, box=box)


def _beta(key: Shaped[Array, "..."], alpha: float) -> Float[Array, ""]:
  """Beta(alpha, alpha); 1 for 0."""
  if not alpha:
    return jnp.ones(())
  # Beta(1, 1) is uniform, without the sampler's loops.
  return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)


def _cut_box(
  keep: Float[Array, ""], shape: tuple[int, int], row: Int[Array, ""], column: Int[Array, ""]
) -> Int[Array, "4"]:
  edges = []
  for side, center in zip(shape, (row, column), strict=True):
    cut = jnp.floor(side * jnp.sqrt(1 - keep)).astype(jnp.int32)
    edges.append((jnp.clip(center - cut // 2, 0, side), jnp.clip(center + (cut + 1) // 2, 0, side)))
  (top, bottom), (left, right) = edges
  return jnp.stack([top, left, bottom, right])


def mix(
  image: Float[AnyArray, "b h w 3"], target: Float[AnyArray, "b k"], draws: MixDraws
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b k"]]:
  """Each image and its soft label mixed with those at the mirrored place of the batch."""
  image, target = jnp.asarray(image), jnp.asarray(target)
  other = jnp.flip(image, 0)
  keep = jnp.asarray(draws.keep)
  blended = image * keep.astype(image.dtype) + other * (1 - keep).astype(image.dtype)
  inside = inside_boxes(jnp.asarray(draws.box)[None], image.shape[1:3])
  pasted = jnp.where(inside, other, image)
  mixed = jnp.where(jnp.asarray(draws.cutmix), pasted, blended)
  return mixed, target * keep + jnp.flip(target, 0) * (1 - keep)


def draw_erasing(
  key: Shaped[Array, "..."],
  batch: int,
  shape: tuple[int, int],
  *,
  probability: float = 0.25,
  area: tuple[float, float] = (0.02, 1 / 3),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Int[Array, "{batch} 4"]:
  """(top, left, bottom, right) to erase of each of `batch` images of `shape` (h, w), all 0 for nothing.

  An image loses a rectangle with `probability`.
  `area` is a share of the image, uniform; `aspect` is height over width, log-uniform. The
  first of `ERASE_ATTEMPTS` rectangles smaller than the image in both directions is placed
  anywhere inside of it; where none is, nothing is erased.
  """
  h, w = shape

  def one(key):
    coin, sizes, ratios, row, column = jax.random.split(key, 5)
    wanted = h * w * jax.random.uniform(sizes, (ERASE_ATTEMPTS,), minval=area[0], maxval=area[1])
    low, high = jnp.log(jnp.asarray(aspect))
    ratio = jnp.exp(jax.random.uniform(ratios, (ERASE_ATTEMPTS,), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(wanted * ratio)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(wanted / ratio)).astype(jnp.int32)
    fits = (heights < h) & (widths < w)
    first = jnp.argmax(fits)
    on = jnp.any(fits) & jax.random.bernoulli(coin, probability)
    height, width = heights[first], widths[first]
    top = jax.random.randint(row, (), 0, jnp.maximum(h - height, 0) + 1)
    left = jax.random.randint(column, (), 0, jnp.maximum(w - width, 0) + 1)
    return jnp.where(on, jnp.stack([top, left, top + height, left + width]), 0)

  return jax.vmap(one)(jax.random.split(key, batch))


def erase(
  image: Float[AnyArray, "b h w 3"], box: Int[AnyArray, "b 4"], key: Shaped[Array, "..."]
) -> Float[Array, "b h w 3"]:
  """Normalised images whose boxes (top, left, bottom, right) become normal noise, pixel by pixel."""
  image = jnp.asarray(image)
  noise = jax.random.normal(key, image.shape, image.dtype)
  return jnp.where(inside_boxes(box, image.shape[1:3]), noise, image)


def augment(
  image: Float[AnyArray, "b h w 3"],
  label: Int[AnyArray, "b"],
  key: Shaped[Array, "..."],
  *,
  num_classes: int,
  smoothing: float = 0.1,
  mixup_alpha: float = 0.8,
  cutmix_alpha: float = 1.0,
  switch_probability: float = 0.5,
  erase_probability: float = 0.25,
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b {num_classes}"]]:
  """A normalised batch → erased and mixed images, and soft labels: the whole recipe of the header."""
  boxes, noise, mixing = jax.random.split(key, 3)
  shape = image.shape[1:3]
  erased = draw_erasing(boxes, image.shape[0], shape, probability=erase_probability)
  image = erase(image, erased, noise)
  target = soft_labels(label, num_classes=num_classes, smoothing=smoothing)
  if not (mixup_alpha or cutmix_alpha):
    return image, target
  draws = draw_mix(
    mixing,
    shape,
    mixup_alpha=mixup_alpha,
    cutmix_alpha=cutmix_alpha,
    switch_probability=switch_probability,
  )
  return mix(image, target, draws)
