"""The effective receptive field: by how much each input pixel moves the output pixel in the middle.

Luo, Li, Urtasun, Zemel: Understanding the effective receptive field in deep convolutional neural networks
(NeurIPS 2016). SegFormer's figure 3 shows it for every stage and the head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxseg import catalog
from jaxseg.errors import UserError
from jaxseg.models import channels_of
from jaxseg.types import AnyArray, Preprocess

HEAD = "head"
# Pixels above this share of the largest count to the field: 1 − 95.45 %, two standard deviations (Luo's).
_LUO_SHARE = 1 - 0.9545


def places_of(model: nn.Module, variables: Any, size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
  """What can be looked at, fine to coarse, "head" last, with its shape (rows, columns, channels)."""
  image = jax.ShapeDtypeStruct((1, *size, channels_of(model)), jnp.float32)
  shapes = jax.eval_shape(lambda v, x: _maps(model, v, x), variables, image)
  order = sorted(shapes, key=lambda name: (name == HEAD, name))
  return {name: tuple(shapes[name].shape[1:]) for name in order}


def receptive_fields(
  model: nn.Module,
  variables: Mapping[str, Any],
  images: Sequence[UInt8[AnyArray, "h w c"]],
  *,
  preprocess: Preprocess,
  places: Sequence[str],
) -> dict[str, Float[np.ndarray, "h w"]]:
  """|gradient of the middle output pixel| by the input, summed over channels, its mean over the images.

  Of the middle pixel all channels are summed; its gradient at another place is 0. Each map is scaled to a
  sum of 1. On the default device, in evaluation mode.

  Args:
    model: an encoder, or one with a decoder.
    variables: its own.
    images: of one size, at least one.
    preprocess: from uint8 to the model's input.
    places: "stage1", ..., or "head" for the logits.

  Raises:
    UserError: no image, images of different sizes, a place that the model does not have.
  """
  sizes = {tuple(image.shape[:2]) for image in images}
  if len(sizes) != 1:
    raise UserError(f"the images have the sizes {sorted(sizes)}; expected at least one image, and one size")
  known = places_of(model, variables, next(iter(sizes)))
  for place in places:
    if place not in known:
      raise UserError(f"{type(model).__name__} has no {place!r}; {catalog.suggestion(place, known)}")

  @jax.jit
  def gradient(variables, image, weights):
    def weighted(image):
      maps = _maps(model, variables, image[None])
      return sum((maps[place][0].astype(jnp.float32).sum(-1) * weights[place]).sum() for place in weights)

    return jnp.abs(jax.grad(weighted)(image)).sum(-1)

  # One program for all places, told by the weights at which pixel to look: compiling takes longest.
  middles = {place: (known[place][0] // 2, known[place][1] // 2) for place in places}
  fields = {}
  for looked_at in places:
    weights = {place: np.zeros(known[place][:2], np.float32) for place in places}
    weights[looked_at][middles[looked_at]] = 1
    total = np.zeros(next(iter(sizes)), np.float64)
    for image in images:
      total += np.asarray(gradient(variables, preprocess(np.asarray(image)), weights), np.float64)
    # A network whose output does not move has an empty field.
    fields[looked_at] = total / max(total.sum(), np.finfo(np.float64).tiny)
  return fields


def luo_size(field: Float[np.ndarray, "h w"]) -> float:
  """Side of a square with as many pixels as have more than 4.55 % of the largest influence, in pixels."""
  return float(np.sqrt(np.sum(field > _LUO_SHARE * field.max()))) if field.max() > 0 else 0.0


def middle_of(size: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int]:
  """Where the middle pixel of a map of `shape` lies in an image of `size`; half a stride off its middle."""
  return tuple(int((n // 2 + 0.5) * side / n) for side, n in zip(size, shape, strict=False))


def side_of_share(field: Float[np.ndarray, "h w"], share: float, middle: tuple[int, int]) -> int:
  """Side of the smallest square around `middle` with `share` of the influence; it may leave the image."""
  rows, columns = np.indices(field.shape)
  distance = np.maximum(np.abs(rows - middle[0]), np.abs(columns - middle[1]))
  held = np.cumsum(np.bincount(distance.reshape(-1), weights=field.reshape(-1)))
  return 2 * int(np.searchsorted(held, share * held[-1] * (1 - 1e-9))) + 1


def drawn_images(
  count: int, size: tuple[int, int], *, channels: int = 3, seed: int = 0
) -> list[UInt8[np.ndarray, "h w c"]]:
  """Noise of all scales (amplitude falling with frequency, as in photographs), seeded."""
  rng = np.random.default_rng(seed)
  rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None]
  frequency = np.maximum(np.hypot(rows, columns), 1 / max(size))
  images = []
  for _ in range(count):
    noise = np.fft.fft2(rng.standard_normal((channels, *size)), axes=(1, 2)) / frequency
    noise = np.fft.ifft2(noise, axes=(1, 2)).real
    noise /= noise.std(axis=(1, 2), keepdims=True)
    images.append(np.clip(128 + 50 * noise, 0, 255).astype(np.uint8).transpose(1, 2, 0))
  return images


def _maps(model: nn.Module, variables: Any, image: Any) -> dict[str, jax.Array]:
  if not hasattr(model, "decoder"):
    features = model.apply(variables, image, train=False)
    if not isinstance(features, Mapping):
      raise UserError("an image classifier gives no maps; give an encoder, or a segmentation model")
    return _stages(features)
  features = model.apply(variables, image, train=False, method="features")
  return _stages(features) | {HEAD: model.apply(variables, image, train=False)["logits"]}


def _stages(features: Mapping[str, Any]) -> dict[str, Any]:
  return {name: features[name] for name in sorted(features) if name.startswith("stage")}
