"""How a narrow map lies in the tiles of a TPU: its columns in the lanes, which its channels would not fill."""

from jaxtyping import Array, Float

LANES = 128


def columns_last(w: int, c: int) -> bool:
  """Whether a map's columns fill the lanes, and its channels do not."""
  return c < LANES and w % LANES == 0


def turned(x: Float[Array, "b h _ _"], turn: bool) -> Float[Array, "b h _ _"]:
  """A map b h w c as b h c w, or the reverse; as it is if not `turn`. The compiler makes a layout of it."""
  return x.transpose(0, 1, 3, 2) if turn else x
