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
from jaxseg.ops.definition import PLATFORMS, by_platform, defined_by, repeat
from jaxseg.types import AnyArray

_EPSILON = 1e-6
# float32 products on TPU and GPU too, where the default would round the factors.
_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

Gradient = Literal["full", "one_step"]


def nmf_reference(
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
  x, bases = jnp.asarray(x, jnp.float32), _for_each(x, bases)

  def total(partial_sum):
    return partial_sum if axis_name is None else lax.psum(partial_sum, axis_name)

  def step(_, state):
    coefficients, bases = state
    coefficients = _next_coefficients(coefficients, bases, _matmul(x, bases))
    bases = _next_bases(coefficients, bases, total(_matmul(x.mT, coefficients)), total)
    return coefficients, bases

  state = repeat(steps, step, (nn.softmax(inv_t * _matmul(x, bases)), bases))
  if gradient == "one_step":
    state = lax.stop_gradient(state)
  coefficients, bases = state
  return _matmul(_next_coefficients(coefficients, bases, _matmul(x, bases)), bases.mT)


@defined_by(nmf_reference)
def nmf(
  x: Float[AnyArray, "*b n d"],
  bases: Float[AnyArray, "*#b d r"],
  *,
  steps: int,
  inv_t: float = 1.0,
  gradient: Gradient = "full",
  axis_name: str | None = None,
) -> Float[Array, "*b n d"]:
  """Equal to `nmf_reference`, which has the arguments; the full gradient on one device has a form of its own.

  JAX's own adds to the gradient of `x`, in every step backwards, two products as large as `x`. Here the steps
  keep the products' factors, r numbers a token, and one product of all of them ends it.
  """
  if gradient == "full" and axis_name is None:
    x = jnp.asarray(x)
    # Of integers no gradient is asked for.
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    return _nmf(x, _for_each(x, bases), steps, inv_t)
  return nmf_reference(x, bases, steps=steps, inv_t=inv_t, gradient=gradient, axis_name=axis_name)


def _for_each(x, bases):
  """A dictionary for each batch entry, in float32."""
  return jnp.broadcast_to(jnp.asarray(bases, jnp.float32), (*x.shape[:-2], *bases.shape[-2:]))


def _times(x: Float[Array, "*b n d"], y: Float[Array, "*b d r"]) -> Float[Array, "*b n r"]:
  """The product x · y with float32's precision, y in float32; of an x in bfloat16 `times_in_parts` on TPU."""
  plain = lambda x, y: _matmul(x.astype(jnp.float32), y)  # noqa: E731
  if x.dtype != jnp.bfloat16:
    return plain(x, y)
  choice = {platform: "parts" if platform == "tpu" else "plain" for platform in PLATFORMS}
  return by_platform(choice, {"parts": times_in_parts, "plain": plain})(x, y)


def times_in_parts(x: Float[Array, "*b n d"], y: Float[Array, "*b d r"]) -> Float[Array, "*b n r"]:
  """The product x · y, x in bfloat16: y is three numbers of eight bits, side by side in one pass.

  For use inside of a derivative of our own. A float32 product in XLA's highest precision would split x too,
  into one part that is all of it and two that are zero, and take six passes.
  """
  parts = []
  for _ in range(3):
    # Not by a conversion and back, which XLA may leave out.
    parts.append(lax.reduce_precision(y, exponent_bits=8, mantissa_bits=7))
    y = y - parts[-1]
  together = jnp.concatenate(parts, -1).astype(jnp.bfloat16)
  return sum(jnp.split(jnp.matmul(x, together, preferred_element_type=jnp.float32), 3, -1))


def _next_coefficients(coefficients, bases, product):
  """The updated coefficients, of `product` = x · bases."""
  gram = _matmul(bases.mT, bases)
  return coefficients * product / (_matmul(coefficients, gram) + _EPSILON)


def _next_bases(coefficients, bases, product, total=lambda partial_sum: partial_sum):
  """The updated bases, of `product` = xᵀ · coefficients."""
  gram = total(_matmul(coefficients.mT, coefficients))
  return bases * product / (_matmul(bases, gram) + _EPSILON)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _nmf(x, bases, steps, inv_t):
  return nmf_reference(x, bases, steps=steps, inv_t=inv_t)


def _nmf_forward(x, bases, steps, inv_t):
  def update(state):
    coefficients, bases = state
    product = _times(x, bases)
    return _next_coefficients(coefficients, bases, product), (coefficients, bases, product)

  def step(state, _):
    updated, of_coefficients = update(state)
    product = _times(x.mT, updated)
    bases = _next_bases(updated, state[1], product)
    return (updated, bases), (of_coefficients, (updated, state[1], product))

  product = _times(x, bases)
  state, steps = lax.scan(step, (nn.softmax(inv_t * product), bases), length=steps)
  updated, last = update(state)
  return _matmul(updated, state[1].mT), (x, (bases, product), steps, last, updated)


def _nmf_backward(_, inv_t, kept, dy):
  x, (first, first_product), steps, last, updated = kept

  def before(kept, cotangent):
    """Of an update of the coefficients: gradients of these, of the bases, and of x · bases."""
    _, pull = jax.vjp(_next_coefficients, *kept)
    of_coefficients, of_bases, of_product = pull(cotangent)
    return of_coefficients, of_bases + _times(x.mT, of_product), of_product

  def step(cotangents, kept):
    (_, bases, _), (updated, _, _) = kept
    _, pull = jax.vjp(_next_bases, *kept[1])
    of_updated, of_bases, of_columns = pull(cotangents[1])
    of_updated = cotangents[0] + of_updated + _times(x, of_columns)
    of_before, more, of_product = before(kept[0], of_updated)
    return (of_before, of_bases + more), ((of_product, updated), (bases, of_columns))

  of_before, of_bases, of_product = before(last, _matmul(dy, last[1]))
  cotangents, (left, right) = lax.scan(
    step, (of_before, of_bases + _matmul(dy.mT, updated)), steps, reverse=True
  )
  _, pull = jax.vjp(lambda product: nn.softmax(inv_t * product), first_product)
  (of_first,) = pull(cotangents[0])
  # The gradient of x is a sum of products: the factors of all side by side, n × r and d × r.
  left = jnp.concatenate([of_product, of_first, *(y for ys in left for y in ys)], -1)
  right = jnp.concatenate([last[1], first, *(y for ys in right for y in ys)], -1)
  return _matmul(left, right.mT).astype(x.dtype), cotangents[1] + _times(x.mT, of_first)


_nmf.defvjp(_nmf_forward, _nmf_backward)


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
