"""Non-negative matrix factorisation as a layer (Hamburger, https://arxiv.org/abs/2109.04553).

Written from the paper. `nmf` is the algorithm on tokens, `NMF` the Linen module that
owns the dictionary. Both compute in float32 whatever they are given: the
multiplicative updates have no headroom in bfloat16's eight bits, and their epsilon is
subnormal in float16.
"""

import zlib
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from jaxseg.errors import UserError
from jaxseg.layers import spatial
from jaxseg.ops.definition import repeat
from jaxseg.types import AnyArray

_EPSILON = 1e-6
# float32 products on TPU and GPU too, where the default would round the factors.
_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

Gradient = Literal["full", "one_step"]


def nmf(
  x: Float[AnyArray, "*b n d"],
  bases: Float[AnyArray, "*#b d r"],
  *,
  steps: int,
  inv_t: float = 1.0,
  gradient: Gradient = "full",
  axis_name: str | None = None,
) -> Float[Array, "*b n d"]:
  """The rank-r approximation of non-negative `x`, by multiplicative updates.

  Coefficients start as softmax(inv_t · x · bases) over r; each step updates them, then
  the bases (Lee and Seung); one more update of the coefficients ends it.

  Args:
    x: n non-negative tokens of width d.
    bases: non-negative dictionary to start from, unit norm over d; one for all or one for each batch entry.
    steps: updates of coefficients and bases.
    inv_t: inverse temperature of the softmax.
    gradient: "full" differentiates through every step (Light-Ham, SegNeXt); "one_step" only through the
      last coefficient update, the steps before counting as constants (HamNet).
    axis_name: inside of `shard_map`, the mesh axis over which the tokens are spread. Only sums of r×r and d×r
      numbers travel over it.

  Returns:
    float32 coefficients · basesᵀ.
  """
  x = jnp.asarray(x, jnp.float32)
  bases = jnp.broadcast_to(jnp.asarray(bases, jnp.float32), (*x.shape[:-2], *bases.shape[-2:]))

  def total(partial_sum):
    return partial_sum if axis_name is None else lax.psum(partial_sum, axis_name)

  def update_coefficients(coefficients, bases):
    gram = _matmul(bases.mT, bases)
    return coefficients * _matmul(x, bases) / (_matmul(coefficients, gram) + _EPSILON)

  def step(_, state):
    coefficients, bases = state
    coefficients = update_coefficients(coefficients, bases)
    gram = total(_matmul(coefficients.mT, coefficients))
    bases = bases * total(_matmul(x.mT, coefficients)) / (_matmul(bases, gram) + _EPSILON)
    return coefficients, bases

  coefficients = nn.softmax(inv_t * _matmul(x, bases))
  state = repeat(steps, step, (coefficients, bases))
  if gradient == "one_step":
    state = lax.stop_gradient(state)
  coefficients, bases = state
  return _matmul(update_coefficients(coefficients, bases), bases.mT)


def draw_bases(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*b d r"]:
  """A random dictionary of `shape` (..., d, r): uniform in [0, 1), then unit norm over d."""
  bases = jax.random.uniform(key, shape)
  return bases / jnp.maximum(jnp.linalg.norm(bases, axis=-2, keepdims=True), 1e-12)


class NMF(nn.Module):
  """`nmf` over a non-negative feature map; no parameters, a dictionary in `buffers`.

  The dictionary `buffers/bases` is (heads, d, rank), d = channels / heads. In training,
  `rngs={"nmf": key}` draws a fresh one for every image and head, as the reference does at
  every call; without that key the stored one is used. Evaluation always uses the
  stored one, and where none was given draws it from `jax.random.key(0)` folded
  with the module's path, so that it repeats to the bit.

  Attributes:
    rank: r, atoms of the dictionary.
    heads: groups of channels, factorised apart.
    over: "space": tokens are pixels, their width the channels. "channels": tokens are channels, their width
      the pixels; d then depends on the image's size, so the dictionary is always drawn and never stored.
    train_steps: updates while training.
    eval_steps: updates in evaluation.
    inv_t: see `nmf`; the published configurations write 100, their code uses 1.
    gradient: see `nmf`.
  """

  rank: int = 64
  heads: int = 1
  over: Literal["space", "channels"] = "space"
  train_steps: int = 6
  eval_steps: int = 7
  inv_t: float = 1.0
  gradient: Gradient = "full"

  @nn.compact
  def __call__(self, x: Float[AnyArray, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
    x = jnp.asarray(x)
    b, h, w, c = x.shape
    if c % self.heads:
      raise UserError(f"NMF got {c} channels for heads={self.heads}; choose a divisor of {c}")
    by_pixel = self.over == "space"
    bases = self._bases(b, c // self.heads if by_pixel else h * w, train)

    def factorise(x, bases, *, axis_name=None):
      # (b, heads, pixels, channels of a head)
      tokens = x.reshape(*x.shape[:1], -1, self.heads, c // self.heads).transpose(0, 2, 1, 3)
      y = nmf(
        tokens if by_pixel else tokens.mT,
        bases,
        steps=self.train_steps if train else self.eval_steps,
        inv_t=self.inv_t,
        gradient=self.gradient,
        axis_name=axis_name,
      )
      y = y if by_pixel else y.mT
      return y.transpose(0, 2, 1, 3).reshape(x.shape).astype(x.dtype)

    if by_pixel and spatial.shards(h) > 1:
      return spatial.on_rows(partial(factorise, axis_name=spatial.AXIS), x, (), same=(bases,))
    return factorise(spatial.whole(x), bases)

  def _bases(self, batch: int, d: int, train: bool) -> Float[Array, "_ s d r"]:
    """The dictionary to start from, one for each image where it is redrawn."""
    shape = (self.heads, d, self.rank)
    # Initialised in training, too, the buffer is made, or evaluation would find none.
    stored = self.over == "space" and (self.is_initializing() or self.has_variable("buffers", "bases"))
    if train and self.has_rng("nmf") and not self.is_initializing():
      return draw_bases(self.make_rng("nmf"), (batch, *shape))
    if not stored:
      path = "/".join(self.path)
      return draw_bases(jax.random.fold_in(jax.random.key(0), zlib.crc32(path.encode())), shape)[None]
    bases = self.variable("buffers", "bases", lambda: draw_bases(self.make_rng("params"), shape)).value
    if bases.shape != shape:
      raise UserError(
        f"buffers/{'/'.join(self.path)}/bases has shape {bases.shape}, but rank={self.rank} and"
        f" heads={self.heads} on {d * self.heads} channels need {shape}; set rank and heads to the file's"
      )
    return bases[None]
