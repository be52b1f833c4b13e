"""Attention: softmax(query · keyᵀ / √d) · value, the softmax in float32.

- Definition: `attention_reference`.
- `attention_by_parts`, where the scores are many: queries a part at a time, in a loop. The derivative keeps
  one number a query (the logarithm of the softmax's normaliser) and makes the scores again.
- TPU, where the scores are many and in 16 bits: a kernel (`ops.attention_kernel`), whose scores never leave
  the vector memory. Of few, the compiler keeps them there by itself.
- CUDA, 16 bits, even lengths: cuDNN's own, through `jax.nn.dot_product_attention`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops import attention_kernel
from jaxseg.ops.definition import PLATFORMS, by_platform, takes_kernels

# Scores made at once, 16 MiB of float32: with their gradients they fit in a TPU's vector memory.
PART_SCORES = 1 << 22
# Below, one part is as good; the published crops on one CPU or GPU stay there.
MANY_SCORES = 1 << 24


def attention_reference(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
) -> Float[Array, "b n heads d"]:
  """The definition; the result has the inputs' dtype."""
  return jax.nn.dot_product_attention(query, key, value, implementation="xla")


def attention(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
  *,
  images: int | None = None,
  on_devices: Callable[[Callable], Callable | None] | None = None,
) -> Float[Array, "b n heads d"]:
  """Equal to `attention_reference`, in the form that suits the device and the number of scores.

  Args:
    query: one row for each position of the result.
    key: one row for each position that is looked at.
    value: like `key`.
    images: that one device holds; None is all of them.
    on_devices: makes of the kernel one that runs on each device of a mesh for its images, or None where
      there must be none; without it the kernel runs as it is.
  """
  b, n, heads, _ = query.shape
  scores = (images or b) * heads * n * key.shape[1]
  parts = min(math.ceil(scores / PART_SCORES), n) if has_many_scores(scores) else 1
  forms = {
    "plain": attention_reference if parts == 1 else functools.partial(attention_by_parts, parts=parts),
    "cudnn": _cudnn,
  }
  if parts > 1 and attention_kernel.fits(query.shape, key.shape[1], query.dtype):
    kernel = attention_kernel.attention if on_devices is None else on_devices(attention_kernel.attention)
    forms |= {} if kernel is None else {"kernel": kernel}
  # JAX looks for cuDNN as soon as its form is traced: never on another machine.
  cudnn = _cudnn_takes(query, key) and jax.default_backend() == "gpu"
  choice = {platform: choose_form(platform, kernel="kernel" in forms, cudnn=cudnn) for platform in PLATFORMS}
  return by_platform(choice, forms)(query, key, value)


def choose_form(platform: str, *, kernel: bool, cudnn: bool) -> str:
  """The table: "kernel", "cudnn" or "plain" for a platform, and shapes that these take or not.

  CUDA: on an H100 cuDNN took 0.56 and 0.52 of the reference's time, with gradients, for SegFormer-B0's first
  and third stage (benchmarks/results/h100.md).
  TPU: by the v5e compiler (benchmarks/results/tpu_v5e_aot.md); the kernel was not run on a chip.
  """
  if kernel and takes_kernels(platform):
    return "kernel"
  return "cudnn" if cudnn and platform == "cuda" else "plain"


def _cudnn_takes(query, key) -> bool:
  n, m, d = query.shape[1], key.shape[1], query.shape[-1]
  return query.dtype.itemsize == 2 and d <= 128 and d % 8 == 0 and n % 2 == 0 and m % 2 == 0


def _cudnn(query, key, value):
  return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def has_many_scores(scores: int) -> bool:
  """Whether `attention` takes the queries in parts, for so many scores on one device."""
  return scores >= MANY_SCORES


def attention_by_parts(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
  *,
  parts: int,
) -> Float[Array, "b n heads d"]:
  """`parts` times a part of the queries; the last is filled up where they do not divide."""
  n = query.shape[1]
  size = -(-n // parts)
  count = -(-n // size)
  query = jnp.pad(query, [(0, 0), (0, count * size - n), (0, 0), (0, 0)])
  # b n heads d → parts b heads n d
  query = query.reshape(query.shape[0], count, size, *query.shape[2:]).transpose(1, 0, 3, 2, 4)
  key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
  out = _by_parts(query, key, value)
  out = out.transpose(1, 0, 3, 2, 4)
  return out.reshape(out.shape[0], count * size, *out.shape[3:])[:, :n]


@jax.custom_vjp
def _by_parts(query, key, value):
  return _forward(query, key, value)[0]


def _forward(query, key, value):
  """(results, log normalisers) of parts b heads n d."""

  def part(query):
    scores = _scores(query, key)
    log_normaliser = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - log_normaliser[..., None]).astype(value.dtype)
    return _product("bhnm,bhmd->bhnd", weights, value).astype(query.dtype), log_normaliser

  return lax.map(part, query)


def _by_parts_fwd(query, key, value):
  out, log_normalisers = _forward(query, key, value)
  return out, (query, key, value, out, log_normalisers)


def _by_parts_bwd(residuals, cotangents):
  query, key, value, out, log_normalisers = residuals
  scale = key.shape[-1] ** -0.5

  def part(totals, members):
    query, out, log_normaliser, cotangent = members
    weights = jnp.exp(_scores(query, key) - log_normaliser[..., None])
    of_weights = _product("bhnd,bhmd->bhnm", cotangent, value)
    mean = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    of_scores = (weights * (of_weights - mean) * scale).astype(query.dtype)
    # Keys and values get a share of every part: the sums stay in float32.
    of_key = totals[0] + _product("bhnm,bhnd->bhmd", of_scores, query)
    of_value = totals[1] + _product("bhnm,bhnd->bhmd", weights.astype(query.dtype), cotangent)
    return (of_key, of_value), _product("bhnm,bhmd->bhnd", of_scores, key).astype(query.dtype)

  # Of what differs by device inside of a `shard_map`, so does its sum.
  zeros = tuple((0 * x).astype(jnp.float32) for x in (key, value))
  (of_key, of_value), of_query = lax.scan(part, zeros, (query, out, log_normalisers, cotangents))
  return of_query, of_key.astype(key.dtype), of_value.astype(value.dtype)


_by_parts.defvjp(_by_parts_fwd, _by_parts_bwd)


def _scores(query, key):
  return _product("bhnd,bhmd->bhnm", query, key) * key.shape[-1] ** -0.5


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
