"""Static sizes for what only the picture tells: how many pixels, how many lattice vertices.

A size that differs is a compilation (seconds), a size too large is memory and time.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxseg.crf.inputs import is_concrete
from jaxseg.errors import UserError


class Rooms:
  """Sizes for one image: its own pixels, and a little more room than its vertices need."""

  def pixels(self, count: int) -> int:
    """Pixels to compute with, at least `count`."""
    return count

  def vertices(self, kernel: int, count: int) -> int:
    """Capacity of the lattice of the kernel of that number, at least `count`."""
    return _eighths(count)


class SharedRooms(Rooms):
  """Sizes for many images: one given before is given again where it fits, lest every image compile anew.

  Pixels are at most 1.25 times, vertices at most twice what is needed.
  """

  def __init__(self):
    self._given: dict[Hashable, set[int]] = {}

  def pixels(self, count: int) -> int:
    return self._choose("pixels", count, wish=1.0, limit=1.25)

  def vertices(self, kernel: int, count: int) -> int:
    # A quarter more than this image needs, for the next.
    return self._choose(kernel, count, wish=1.25, limit=2.0)

  def _choose(self, what, count, *, wish, limit):
    given = self._given.setdefault(what, set())
    fitting = [size for size in given if count <= size <= limit * count]
    if fitting:
      return min(fitting)
    size = _eighths(int(wish * count))
    given.add(size)
    return size


def _eighths(count):
  """Rounded up to an eighth of a power of two, so that images alike share one compilation."""
  grain = max(256, 2 ** (count.bit_length() - 4))
  return -(-count // grain) * grain


def counted(placed: Sequence[Any]) -> list[int] | None:
  """Vertices of each kernel's lattice (`permutohedral.Corners`), or None when they are traced.

  Raises:
    UserError: a kernel so narrow that its lattice has no integer coordinates.
  """
  # The derivative's tracers hold a value, which int arrays do not need a derivative for.
  if not is_concrete([(c.count, c.packs) for c in placed]):
    return None
  for number, one in enumerate(placed):
    if not bool(jnp.all(one.packs)):
      raise UserError(
        f"kernel {number} is too narrow for the lattice, whose coordinates would not fit 64 bits;"
        ' use wider sxy and srgb, or method="exact"'
      )
  return [int(jnp.max(one.count)) for one in placed]


def static_capacities(
  placed: Sequence[Any], capacity: int | Sequence[int] | None, rooms: Rooms
) -> tuple[int, ...]:
  """A static capacity for each lattice: what was asked for if it suffices, else what was counted.

  Raises:
    UserError: what was asked for is no capacity, or does not suffice; the message names the needed value.
  """
  most = [c.pixel.shape[-1] * c.pixel.shape[-2] for c in placed]
  counts = counted(placed)
  if capacity is None and counts is None:
    return tuple(most)
  if capacity is None:
    wanted = [rooms.vertices(kernel, count) for kernel, count in enumerate(counts)]
    return tuple(map(min, wanted, most))
  asked = [capacity] * len(most) if np.ndim(capacity) == 0 else list(capacity)
  if len(asked) != len(most) or not all(isinstance(c, int | np.integer) and c >= 1 for c in asked):
    raise UserError(
      f"capacity is {capacity}; expected a positive whole number, or one for each of {len(most)} kernels"
    )
  for number, (size, count) in enumerate(zip(asked, counts or asked, strict=True)):
    if size < count:
      raise UserError(
        f"capacity {size} does not suffice for kernel {number}: its lattice has {count} vertices;"
        f" pass capacity={count} or more, or None to have them counted"
      )
  return tuple(min(int(size), bound) for size, bound in zip(asked, most, strict=True))
