"""How a narrow map lies in the tiles of a TPU, whose lanes its channels do not fill.

Either its columns lie in the lanes, for kernels, or some neighbouring columns side by side, for XLA's
convolutions, which want channels there.
"""

from jaxtyping import Array, Float

from jaxseg.types import Dim

LANES = 128


def columns_last(w: int, c: int) -> bool:
  """Whether a map's columns fill the lanes, and its channels do not."""
  return c < LANES and w % LANES == 0


def turned(x: Float[Array, "b h _ _"], turn: bool) -> Float[Array, "b h _ _"]:
  """A map b h w c as b h c w, or the reverse; as it is if not `turn`. The compiler makes a layout of it."""
  return x.transpose(0, 1, 3, 2) if turn else x


def columns_side_by_side(w: Dim, c: int) -> int:
  """How many columns of `c` channels fill the lanes exactly; 1 where none do, or the map's do not divide."""
  n = LANES // c
  return n if n > 1 and n * c == LANES and isinstance(w, int) and w % n == 0 else 1


def side_by_side(x: Float[Array, "b h w c"], n: int) -> Float[Array, "b h _ _"]:
  """A map b h w c as b h w/n n·c: column n·p + j is channels j·c to (j + 1)·c of column p."""
  b, h, w, c = x.shape
  return x.reshape(b, h, w // n, n * c)
