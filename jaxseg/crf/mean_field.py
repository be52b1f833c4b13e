"""Mean-field inference of the fully-connected CRF (Krähenbühl and Koltun 2011, as in DeepLab).

  Q ← softmax(−U),  then `steps` times  Q ← softmax(−U + Σ_m w_m K_m Q)

with K_m a Gaussian kernel over all pairs of pixels, each with itself included, and
normalised by 1/√(K 1) on both sides, as pydensecrf does by default.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxseg.crf.exact import exact_filter
from jaxseg.crf.inputs import check_arrays, check_range, features, is_concrete, parse_kernels, pixel_grid
from jaxseg.crf.lattice import lattice_filter, scaled
from jaxseg.crf.permutohedral import build, corners
from jaxseg.crf.rooms import Rooms, counted, static_capacities
from jaxseg.errors import UserError
from jaxseg.types import AnyArray

METHODS = ("exact", "lattice")

# Added to K 1 before its root, as pydensecrf does.
NORM_EPSILON = 1e-20


def mean_field(
  unary: Float[AnyArray, "*b h w k"],
  image: AnyArray,
  kernels: Any,
  steps: int = 10,
  method: str = "exact",
  *,
  capacity: int | Sequence[int] | None = None,
) -> Float[Array, "*b h w k"]:
  """Class probabilities after `steps` mean-field updates, shaped like `unary`.

  Jittable and differentiable with respect to `unary`, the compatibilities, the
  widths and a float image. Computes in float32, or float64 for a float64 unary.

  Args:
    unary: negative log probabilities, with or without a batch axis.
    image: RGB in 0..255, not normalised, `*b h w 3`; uint8, or floats of that range.
    kernels: sequence of (sxy, srgb, compat). sxy: standard deviation in pixels, or
      (along x, along y). srgb: in grey levels, or one a channel; None or 0 for a
      kernel of position only. compat: a number w (Potts: adds w·K·Q to the logits) or
      a k×k penalty matrix μ (subtracts K·Q·μ).
    method: "exact" evaluates every pair in tiles: time grows with the square of the
      pixels, memory does not. "lattice" is the permutohedral approximation, linear in both.
    capacity: lattice vertices to make room for, for all kernels or for each. None
      counts them first; under `jit`, where nothing can be counted, None takes the
      largest possible number. `lattice_sizes` tells what an image needs. A capacity
      that does not suffice is an error, and NaN in every pixel of that image under `jit`.

  Raises:
    UserError: sizes that differ, values out of range, an unknown method, a capacity
      that does not suffice. Values are looked at only outside `jit`.
  """
  logits, _ = run(unary, image, kernels, steps, method, capacity=capacity, energies=False)
  return jax.nn.softmax(logits, axis=-1)


def run(
  unary: Float[AnyArray, "*b h w k"],
  image: AnyArray,
  kernels: Any,
  steps: int,
  method: str,
  *,
  capacity: int | Sequence[int] | None,
  energies: bool,
  start: Float[AnyArray, "*b h w k"] | None = None,
  rooms: Rooms | None = None,
) -> tuple[Float[Array, "*b h w k"], Float[Array, "*b s"]]:
  """`mean_field` before its last softmax, and the free energy by step (s is 0 unless `energies`).

  `start` replaces −U as the logits of the first Q. `rooms` chooses the static sizes of the
  lattice method where they are not traced; its results do not depend on them.
  """
  if method not in METHODS:
    raise UserError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
  if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
    raise UserError(f"steps is {steps!r}; expected a whole number of updates, 0 or more")
  unary, image = check_arrays(unary, image)
  kernels = parse_kernels(kernels, unary.shape[-1], unary.dtype)
  batched = unary.ndim == 4
  start = -unary if start is None else jnp.asarray(start, unary.dtype)
  if not batched:
    unary, image, start = unary[None], image[None], start[None]
  shape, rooms = unary.shape, rooms or Rooms()
  pixels = shape[1] * shape[2]
  if method == "lattice":
    if is_concrete((unary, image, start, kernels)):
      pixels = rooms.pixels(pixels)
    placed = _corners(*_flat_image(image, pixels=pixels), kernels)
    capacities = static_capacities(placed, capacity, rooms)
    image = None
  else:
    placed, capacities = None, None
  flat = _flat(unary, pixels=pixels), _flat(start, pixels=pixels)
  count = jnp.asarray(shape[1] * shape[2])
  logits, trace = _mean_field(*flat, count, image, kernels, placed, int(steps), capacities, energies)
  logits = _unflat(logits, shape=shape)
  return (logits, trace) if batched else (logits[0], trace[0])


@partial(jax.jit, static_argnames="pixels")
def _flat(values, pixels):
  values = values.reshape(values.shape[0], -1, values.shape[-1])
  return jnp.pad(values, ((0, 0), (0, pixels - values.shape[1]), (0, 0)))


@partial(jax.jit, static_argnames="pixels")
def _flat_image(image, pixels):
  """Place and colour of each pixel, and which are the image's: the others copy its first, without a weight.

  A copy touches the first pixel's vertices, so that the lattice is the image's own.
  """
  batch, height, width, _ = image.shape
  n = height * width
  place = jnp.pad(pixel_grid(height, width, image.dtype), ((0, pixels - n), (0, 0)))
  colour = image.reshape(batch, n, 3)
  copies = jnp.broadcast_to(colour[:, :1], (batch, pixels - n, 3))
  return place, jnp.concatenate([colour, copies], axis=1), jnp.arange(pixels) < n


@partial(jax.jit, static_argnames="shape")
def _unflat(values, shape):
  return values[:, : shape[1] * shape[2]].reshape(shape)


@partial(jax.jit, static_argnames=("steps", "capacities", "energies"))
def _mean_field(unary, start, count, image, kernels, placed, steps, capacities, energies):
  n = unary.shape[1]
  real = jnp.arange(n)[:, None] < count

  def one(inputs):
    unary, start, image, placed = inputs
    size = n, unary.dtype
    if capacities is None:
      filters, valid = [_normalised(exact_filter(image, kernel), *size) for kernel in kernels], True
    else:
      lattices = [build(c, room) for c, room in zip(placed, capacities, strict=True)]
      filters = [_normalised_lattice(lattice, *size) for lattice in lattices]
      valid = jnp.all(jnp.stack([lattice.valid for lattice in lattices]))
    logits, trace = _iterate(unary, start, real, kernels, filters, steps, energies)
    return jnp.where(valid, logits, jnp.nan), jnp.where(valid, trace, jnp.nan)

  return lax.map(one, (unary, start, image, placed))


def _iterate(unary, start, real, kernels, filters, steps, energies):
  """The updates of one image. Logits are the carry, lest XLA repeat the filters inside the softmax."""

  def message(logits):
    q = jax.nn.softmax(logits, axis=-1)
    total = jnp.zeros_like(q)
    for kernel, filter_ in zip(kernels, filters, strict=True):
      mixed = filter_(q)
      if kernel.compat.ndim == 0:
        total = total + kernel.compat * mixed
      else:
        total = total - jnp.matmul(mixed, kernel.compat, precision=lax.Precision.HIGHEST)
    return q, total

  def energy(logits, q, total):
    each = q * (unary + jax.nn.log_softmax(logits, axis=-1) - 0.5 * total)
    return jnp.sum(jnp.where(real, each, 0))

  def step(logits, _):
    q, total = message(logits)
    return total - unary, energy(logits, q, total) if energies else None

  # Only the logits of each step are kept for the derivative.
  logits, trace = lax.scan(jax.checkpoint(step), start, None, length=steps)
  if not energies:
    return logits, jnp.zeros(0, logits.dtype)
  return logits, jnp.append(trace, energy(logits, *message(logits)))


def _normalised(filter_, n, dtype):
  """D K D as a function, D = 1/√(K 1) on the diagonal."""
  scale = 1 / jnp.sqrt(filter_(jnp.ones((n, 1), dtype)) + NORM_EPSILON)
  return lambda values: scale * filter_(scale * values)


def _normalised_lattice(lattice, n, dtype):
  scale = 1 / jnp.sqrt(lattice_filter(lattice, jnp.ones((n, 1), dtype)) + NORM_EPSILON)
  return partial(lattice_filter, scaled(lattice, scale[:, 0]))


@jax.jit
def _corners(place, colour, real, kernels):
  """The lattices' vertices, before anything needs a capacity."""

  def one(colour):
    placed = [corners(features(place, colour, kernel.sxy, kernel.srgb)) for kernel in kernels]
    return [c._replace(weight=jnp.where(real, c.weight, 0)) for c in placed]

  return lax.map(one, colour)


def lattice_sizes(image: AnyArray, kernels: Any) -> tuple[int, ...]:
  """The lattice vertices that `image` needs for each kernel, the most in the batch.

  `image` is *b h w 3, RGB in 0..255. Pass the result as `capacity` where
  `mean_field` is jitted with `method="lattice"`.

  Raises:
    UserError: as `mean_field`.
  """
  check_range(image)
  if np.ndim(image) not in (3, 4) or np.shape(image)[-1] != 3:
    raise UserError(f"image has shape {np.shape(image)}; expected h w 3, or b h w 3 for a batch")
  image = jnp.asarray(image, jnp.float32).reshape(-1, *np.shape(image)[-3:])
  pixels = image.shape[1] * image.shape[2]
  kernels = parse_kernels(kernels, None, image.dtype)
  counts = counted(_corners(*_flat_image(image, pixels=pixels), kernels))
  if counts is None:
    raise UserError("lattice_sizes counts, which cannot be traced; call it outside jit, grad and vmap")
  return tuple(counts)
