"""Attention as a kernel for TPUs (Pallas), value and derivative.

A block is some queries of one head and all keys of it. Queries lie in the lanes, of the map, of the scores
and of the result: a head is 32 or 64 wide in MiT, and would leave most lanes empty. Scores live in vector
memory only; the derivative makes them again from what went in, so that nothing else is kept.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

_SUBLANES, _LANES = 16, 128  # of 16-bit numbers
# Of a block's scores, in float32: the derivative holds some six such arrays in vector memory.
_BLOCK_BYTES = 1 << 20
# Below, a block is mostly what it is filled up with, or the compiler's own products take fewer cycles.
_FEWEST_KEYS, _FEWEST_QUERIES = 128, 512

_product = functools.partial(lax.dot_general, preferred_element_type=jnp.float32)
_PLAIN, _BOTH_LAST = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def fits(query_shape: Sequence[int], keys: int, dtype: Any) -> bool:
  """Whether the kernels take queries b n heads d and so many keys: 16 bits, whole sublanes, many enough."""
  _, n, _, d = query_shape
  if not all(isinstance(size, int) for size in (*query_shape, keys)):
    return False  # of a symbolic size nothing can be asked
  if jnp.dtype(dtype).itemsize != 2 or d % _SUBLANES or d > _LANES:
    return False
  return n >= _FEWEST_QUERIES and keys >= _FEWEST_KEYS and 4 * _filled(keys) * _LANES <= _BLOCK_BYTES


def _filled(size: int) -> int:
  return -(-size // _LANES) * _LANES


def _block(n: int, keys: int) -> int:
  """Queries of a block: whole lanes, blocks as equal as they get."""
  most = max(_BLOCK_BYTES // (4 * _filled(keys)) // _LANES, 1) * _LANES
  return _filled(-(-n // -(-n // most)))


def attention(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
  *,
  interpret: bool = False,
) -> Float[Array, "b n heads d"]:
  """softmax(query · keyᵀ / √d) · value of shapes that `fits` takes; `interpret` runs anywhere, slowly."""
  b, n, heads, d = query.shape
  m = key.shape[1]
  block = _block(n, m)
  query = jnp.pad(query, [(0, 0), (0, -n % block), (0, 0), (0, 0)])
  key, value = (jnp.pad(x, [(0, 0), (0, _filled(m) - m), (0, 0), (0, 0)]) for x in (key, value))
  query = query.transpose(0, 2, 3, 1).reshape(b * heads, d, -1)
  key, value = (x.transpose(0, 2, 1, 3).reshape(b * heads, -1, d) for x in (key, value))
  out = _attention(query, key, value, m, block, interpret)
  return out.reshape(b, heads, d, -1)[..., :n].transpose(0, 3, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attention(query, key, value, keys, block, interpret):
  """Of queries h d n, keys and values h m d, of which the first `keys` are none of the filling: h d n."""
  return _run_forward(query, key, value, keys, block, interpret)


def _backward(keys, block, interpret, kept, cotangent):
  return tuple(_run_backward(*kept, cotangent, keys, block, interpret))


_attention.defvjp(lambda q, k, v, *sizes: (_attention(q, k, v, *sizes), (q, k, v)), _backward)


def _specs(query, key, block):
  """Blocks of what has the queries in the lanes, of what has the keys there, and of what has them in rows."""
  (_, d, _), (_, m, _) = query.shape, key.shape
  of_queries = pl.BlockSpec((1, d, block), lambda head, part: (head, 0, part))
  of_keys = pl.BlockSpec((1, d, m), lambda head, part: (head, 0, 0))
  rows = pl.BlockSpec((1, m, d), lambda head, part: (head, 0, 0))
  return of_queries, of_keys, rows


# Jitted, so that equal blocks of a network are traced once.
@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _run_forward(query, key, value, keys, block, interpret):
  of_queries, of_keys, rows = _specs(query, key, block)
  return pl.pallas_call(
    functools.partial(_forward_kernel, keys),
    grid=(len(query), query.shape[2] // block),
    in_specs=[of_queries, rows, of_keys],
    out_specs=of_queries,
    out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    cost_estimate=_cost(query, key, products=2, maps=2),
    interpret=interpret,
  )(query, key, value.transpose(0, 2, 1))


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _run_backward(query, key, value, cotangent, keys, block, interpret):
  of_queries, of_keys, rows = _specs(query, key, block)
  of_query, of_key, of_value = pl.pallas_call(
    functools.partial(_backward_kernel, keys),
    grid=(len(query), query.shape[2] // block),
    in_specs=[of_queries, of_queries, rows, of_keys, rows],
    out_specs=[of_queries, rows, rows],
    out_shape=[
      jax.ShapeDtypeStruct(query.shape, query.dtype),
      *(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (key, value)),
    ],
    # The gradients of keys and values are added up over the queries.
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    cost_estimate=_cost(query, key, products=5, maps=3),
    interpret=interpret,
  )(query, cotangent, key, key.transpose(0, 2, 1), value)
  return of_query, of_key.astype(key.dtype), of_value.astype(value.dtype)


def _cost(query, key, *, products, maps):
  (heads, d, n), m = query.shape, key.shape[1]
  moved = maps * query.size * query.dtype.itemsize
  return pl.CostEstimate(
    flops=2 * products * heads * n * m * d, transcendentals=heads * n * m, bytes_accessed=moved
  )


def _exponentials(keys, query, key):
  """(exp of the scores less their largest, the sum of those): keys in the rows, queries in the lanes."""
  scores = _product(key[0], query[0], _PLAIN) * query.shape[1] ** -0.5
  if keys < key.shape[1]:
    number = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    scores = jnp.where(number < keys, scores, -jnp.inf)
  found = jnp.exp(scores - scores.max(0, keepdims=True))
  return found, found.sum(0, keepdims=True)


def _forward_kernel(keys, query, key, value, out):
  found, total = _exponentials(keys, query, key)
  y = _product(value[0], found.astype(value.dtype), _PLAIN)
  out[0] = (y / total).astype(out.dtype)


def _backward_kernel(keys, query, cotangent, key, key_columns, value, of_query, of_key, of_value):
  found, total = _exponentials(keys, query, key)
  weights = found / total
  of_weights = _product(value[0], cotangent[0], _PLAIN)
  mean = (weights * of_weights).sum(0, keepdims=True)
  of_scores = (weights * (of_weights - mean) * query.shape[1] ** -0.5).astype(query.dtype)
  of_query[0] = _product(key_columns[0], of_scores, _PLAIN).astype(of_query.dtype)

  @pl.when(pl.program_id(1) == 0)
  def _():
    of_key[...], of_value[...] = jnp.zeros_like(of_key), jnp.zeros_like(of_value)

  of_key[0] = of_key[0] + _product(of_scores, query[0], _BOTH_LAST)
  of_value[0] = of_value[0] + _product(weights.astype(query.dtype), cotangent[0], _BOTH_LAST)
