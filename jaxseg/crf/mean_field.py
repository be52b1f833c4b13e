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
from jaxseg.crf.inputs import check_arrays, check_range, features, is_concrete, parse_kernels
from jaxseg.crf.lattice import lattice_filter, scaled
from jaxseg.crf.permutohedral import build, corners
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
    ValueError: sizes that differ, values out of range, an unknown method, a capacity
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
) -> tuple[Float[Array, "*b h w k"], Float[Array, "*b s"]]:
  """`mean_field` before its last softmax, and the free energy by step (s is 0 unless `energies`).

  `start` replaces −U as the logits of the first Q.
  """
  if method not in METHODS:
    raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
  if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
    raise ValueError(f"steps is {steps!r}; expected a whole number of updates, 0 or more")
  unary, image = check_arrays(unary, image)
  kernels = parse_kernels(kernels, unary.shape[-1], unary.dtype)
  batched = unary.ndim == 4
  start = -unary if start is None else jnp.asarray(start, unary.dtype)
  if not batched:
    unary, image, start = unary[None], image[None], start[None]
  if method == "lattice":
    placed = _corners(image, kernels)
    capacities = _capacities(placed, capacity)
  else:
    placed, capacities = None, None
  logits, trace = _mean_field(unary, image, start, kernels, placed, int(steps), capacities, energies)
  return (logits, trace) if batched else (logits[0], trace[0])


@partial(jax.jit, static_argnames=("steps", "capacities", "energies"))
def _mean_field(unary, image, start, kernels, placed, steps, capacities, energies):
  def one(inputs):
    unary, image, start, placed = inputs
    size = image.shape[0] * image.shape[1], image.dtype
    if capacities is None:
      filters, valid = [_normalised(exact_filter(image, kernel), *size) for kernel in kernels], True
    else:
      lattices = [build(c, room) for c, room in zip(placed, capacities, strict=True)]
      filters = [_normalised_lattice(lattice, *size) for lattice in lattices]
      valid = jnp.all(jnp.stack([lattice.valid for lattice in lattices]))
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    logits, trace = _iterate(flat(unary), flat(start), kernels, filters, steps, energies)
    return jnp.where(valid, logits.reshape(unary.shape), jnp.nan), jnp.where(valid, trace, jnp.nan)

  return lax.map(one, (unary, image, start, placed))


def _iterate(unary, start, kernels, filters, steps, energies):
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
    return jnp.sum(q * (unary + jax.nn.log_softmax(logits, axis=-1) - 0.5 * total))

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
def _corners(image, kernels):
  """The lattices' vertices, before anything needs a capacity."""
  return lax.map(lambda one: [corners(features(one, k.sxy, k.srgb)) for k in kernels], image)


def lattice_sizes(image: AnyArray, kernels: Any) -> tuple[int, ...]:
  """The lattice vertices that `image` needs for each kernel, the most in the batch.

  `image` is *b h w 3, RGB in 0..255. Pass the result as `capacity` where
  `mean_field` is jitted with `method="lattice"`.

  Raises:
    ValueError: as `mean_field`.
  """
  check_range(image)
  image = jnp.asarray(image, jnp.float32)
  placed = _corners(image.reshape(-1, *image.shape[-3:]), parse_kernels(kernels, None, image.dtype))
  return tuple(_counts(placed))


def _counts(placed):
  """Vertices of each kernel's lattice, or None when they are traced.

  Raises:
    ValueError: a kernel so narrow that its lattice has no integer coordinates.
  """
  # The derivative's tracers hold a value, which int arrays do not need a derivative for.
  if not is_concrete([(c.count, c.packs) for c in placed]):
    return None
  for number, one in enumerate(placed):
    if not bool(jnp.all(one.packs)):
      raise ValueError(
        f"kernel {number} is too narrow for the lattice, whose coordinates would not fit 64 bits;"
        ' use wider sxy and srgb, or method="exact"'
      )
  return [int(jnp.max(one.count)) for one in placed]


def _capacities(placed, capacity):
  """A static capacity for each lattice: what was asked for if it suffices, else what was counted."""
  most = [c.pixel.shape[-1] * c.pixel.shape[-2] for c in placed]
  counts = _counts(placed)
  if capacity is None:
    return tuple(most) if counts is None else tuple(map(_roomy, counts, most))
  asked = [capacity] * len(most) if isinstance(capacity, int | np.integer) else list(capacity)
  if len(asked) != len(most) or min(asked) < 1:
    raise ValueError(
      f"capacity is {capacity}; expected a positive number, or one for each of {len(most)} kernels"
    )
  for number, (size, count) in enumerate(zip(asked, counts or asked, strict=True)):
    if size < count:
      raise ValueError(
        f"capacity {size} does not suffice for kernel {number}: its lattice has {count} vertices;"
        f" pass capacity={count} or more, or None to have them counted"
      )
  return tuple(min(int(size), bound) for size, bound in zip(asked, most, strict=True))


def _roomy(count, most):
  """Rounded up to an eighth of a power of two, so that images alike share one compilation."""
  grain = max(256, 2 ** (count.bit_length() - 4))
  return min(-(-count // grain) * grain, most)
