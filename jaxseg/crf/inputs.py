"""What a user passes to the CRF, checked: unary, image, and kernels written as (sxy, srgb, compat)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxseg.errors import UserError
from jaxseg.types import AnyArray


class Kernel(NamedTuple):
  """One Gaussian pairwise kernel and its label compatibility."""

  sxy: Float[Array, "2"]  # standard deviations along x and y, in pixels
  srgb: Float[Array, "3"] | None  # along red, green, blue, in 0..255; None: position only
  compat: Float[Array, ""] | Float[Array, "k k"]  # Potts weight w, or penalties μ


def parse_kernels(kernels: Any, num_classes: int | None, dtype: Any) -> tuple[Kernel, ...]:
  """Reads a sequence (or an n×3 array) of (sxy, srgb, compat); traced values are taken as they are.

  `num_classes=None` accepts any square compatibility.

  Raises:
    UserError: what cannot be a kernel, with its position in the sequence.
  """
  if not hasattr(kernels, "__len__"):
    raise UserError(f"kernels is {kernels!r}; expected a sequence of (sxy, srgb, compat)")
  if len(kernels) == 0:
    raise UserError("kernels is empty; pass at least one (sxy, srgb, compat), such as (3, None, 3)")
  parsed = []
  for number, kernel in enumerate(kernels):
    if not hasattr(kernel, "__len__"):
      raise UserError(f"kernel {number} is {kernel!r}; expected (sxy, srgb, compat)")
    if len(kernel) != 3:
      raise UserError(f"kernel {number} has {len(kernel)} entries; expected (sxy, srgb, compat)")
    sxy, srgb, compat = kernel
    sxy = _widths(sxy, 2, f"kernel {number}: sxy", dtype)
    position_only = srgb is None or (np.ndim(srgb) == 0 and is_concrete(srgb) and float(srgb) == 0)
    srgb = None if position_only else _widths(srgb, 3, f"kernel {number}: srgb", dtype)
    classes = np.shape(compat)[-1:] if num_classes is None else (num_classes,)
    if np.shape(compat) not in ((), classes * 2):
      raise UserError(
        f"kernel {number}: compat has shape {np.shape(compat)}; expected a number (Potts weight) or"
        f" a square of penalties, {num_classes or 'k'}x{num_classes or 'k'} for the classes of unary"
      )
    if is_concrete(compat) and not np.all(np.isfinite(compat)):
      raise UserError(f"kernel {number}: compat has a value that is not finite; pass finite numbers")
    parsed.append(Kernel(sxy, srgb, jnp.asarray(compat, dtype)))
  return tuple(parsed)


def _widths(value: Any, size: int, what: str, dtype: Any) -> Float[Array, " size"]:
  if np.shape(value) not in ((), (size,)):
    raise UserError(f"{what} has shape {np.shape(value)}; expected a number or {size} of them")
  if is_concrete(value) and not all(math.isfinite(v) and v > 0 for v in np.ravel(value)):
    allowed = "positive" if size == 2 else "positive, or None or 0 for a kernel of position only"
    raise UserError(f"{what} is {value}; a standard deviation must be {allowed}")
  return jnp.broadcast_to(jnp.asarray(value, dtype), (size,))


def check_arrays(
  unary: AnyArray, image: AnyArray
) -> tuple[Float[Array, "*b h w k"], Float[Array, "*b h w 3"]]:
  """Unary and image in the computing dtype: float32, or float64 for a float64 unary.

  Raises:
    UserError: shapes that do not belong together; outside `jit` also values out of range.
  """
  if np.ndim(unary) not in (3, 4):
    raise UserError(f"unary has shape {np.shape(unary)}; expected h w k, or b h w k for a batch")
  if np.shape(image)[:-1] == np.shape(unary)[:-1] and np.shape(image)[-1] != 3:
    raise UserError(
      f"the CRF compares the colours of RGB images, and this one has {np.shape(image)[-1]} channels; leave"
      " the CRF out, or give it an RGB image of the same place"
    )
  if np.shape(image) != (*np.shape(unary)[:-1], 3):
    raise UserError(
      f"image has shape {np.shape(image)} and unary {np.shape(unary)}; expected an image of"
      f" {(*np.shape(unary)[:-1], 3)}: resize the logits to the image's size before taking −log softmax"
    )
  if is_concrete(unary) and not bool(jnp.all(jnp.isfinite(unary))):
    raise UserError("unary has values that are not finite; clip the probabilities, say at 1e-5, before −log")
  check_range(image)
  dtype = jnp.promote_types(jnp.result_type(unary), jnp.float32)
  return jnp.asarray(unary, dtype), jnp.asarray(image, dtype)


def check_range(image: AnyArray) -> None:
  """Refuses an image that cannot be RGB in 0..255; one under a trace is not looked at.

  Raises:
    UserError: normalised or scaled values, or values that are not finite.
  """
  if not is_concrete(image) or image.dtype == np.uint8:
    return
  low, high = float(jnp.min(image)), float(jnp.max(image))
  scaled = jnp.issubdtype(image.dtype, jnp.floating) and 0 < high <= 1
  if not (low >= 0 and high <= 255) or scaled:
    raise UserError(
      f"image has {image.dtype} values from {low:g} to {high:g}; srgb counts grey levels, so pass the"
      " un-normalised RGB image in 0..255 (uint8)"
    )


def is_concrete(value: Any) -> bool:
  """Whether a value can be looked at now: anything but a tracer, also inside a tuple."""
  return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def pixel_grid(height: int, width: int, dtype: Any) -> Float[Array, "n 2"]:
  """(x, y) of each pixel, in row-major order."""
  y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
  return jnp.stack([x, y], axis=-1).astype(dtype).reshape(height * width, 2)


def features(
  place: Float[Array, "n 2"],
  colour: Float[Array, "n 3"],
  sxy: Float[Array, "2"],
  srgb: Float[Array, "3"] | None,
) -> Float[Array, "n d"]:
  """(x, y) or (x, y, r, g, b) of each pixel, in standard deviations."""
  return place / sxy if srgb is None else jnp.concatenate([place / sxy, colour / srgb], axis=-1)
