"""The permutohedral lattice of one image: which vertices surround each pixel, and who neighbours whom.

Written from Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the
Permutohedral Lattice" (2010). The lattice holds the vertices that some pixel
touches and no others, as Krähenbühl's and pydensecrf's do. Where they have a hash
table, this has a sort, so that every shape is static: the vertices of one
remainder (a lattice point's coordinates agree modulo d + 1) sit in one sorted row
of codes, equal codes are one vertex, and a neighbour is a code at a fixed distance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# Entries (a pixel at a vertex) summed by gathers before the scatter: XLA:CPU adds one row
# after the other in a scatter, but gathers on all cores.
CHUNK = 8


def take(values: Array, index: Int[Array, "..."]) -> Array:
  """Rows of `values`; the caller knows that every index is in bounds, which a gather need not check again."""
  return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


class Corners(NamedTuple):
  """The d + 1 lattice vertices around each pixel, sorted; r = d + 1 remainders, n pixels."""

  weight: Float[Array, "r n"]  # barycentric, in pixel order
  pixel: Int[Array, "r n"]  # sorted by code within each remainder, like all that follows
  high: Int[Array, "r n"]
  low: Int[Array, "r n"]
  step: Int[Array, "2 2 r"]  # word × (remainder > 0, remainder == 0) × direction → distance of the neighbour
  vertex: Int[Array, "r n"]  # running number of the vertex
  count: Int[Array, ""]  # how many vertices there are
  packs: Bool[Array, ""]  # whether the codes fitted their words; if not, nothing else is valid


class Lattice(NamedTuple):
  """What filtering needs. m vertices of capacity, row m is "no such vertex"; p chunks of CHUNK entries."""

  weight: Float[Array, "r n"]
  vertex: Int[Array, "r n"]
  chunk_pixel: Int[Array, "c p"]
  chunk_weight: Float[Array, "c p"]  # 0 where a chunk is not full
  chunk_vertex: Int[Array, " p"]
  neighbour: Int[Array, "r 2 m1"]
  valid: Bool[Array, ""]  # False: the capacity, or the code words, did not suffice


def embed(
  features: Float[Array, "n d"],
) -> tuple[Int[Array, "r n"], Int[Array, "r n"], Float[Array, "r n"]]:
  """Finds the simplex around each point: nearest remainder-0 vertex / (d + 1), ranks, barycentric weights.

  The scale makes blurring with (1/2, 1, 1/2) along each direction a Gaussian of
  standard deviation 1 in `features`.
  """
  d = features.shape[1]
  axis = np.arange(d)
  scale = np.sqrt(2 / 3) * (d + 1) / np.sqrt((axis + 1) * (axis + 2))
  x = features.T * jnp.asarray(scale, features.dtype)[:, None]
  elevated, tail = [], jnp.zeros_like(x[0])
  for i in range(d, 0, -1):
    elevated.append(tail - i * x[i - 1])
    tail = tail + x[i - 1]
  elevated = jnp.stack([tail, *elevated[::-1]]) / (d + 1)

  cell = lax.stop_gradient(jnp.round(elevated))
  rest = elevated - cell
  # rank = how many coordinates have a larger rest; of equals the first ranks first
  order = np.arange(d + 1)
  ahead = (rest[None] > rest[:, None]) | (
    (rest[None] == rest[:, None]) & (order[None] < order[:, None])[..., None]
  )
  cell = cell.astype(jnp.int32)
  rank = jnp.sum(ahead, axis=1, dtype=jnp.int32) + jnp.sum(cell, axis=0)  # the sum is off the plane by this
  shift = (rank < 0).astype(jnp.int32) - (rank > d).astype(jnp.int32)
  cell, rank = cell + shift, rank + (d + 1) * shift
  rest = elevated - cell.astype(elevated.dtype)

  # rest by rank, largest first; the weights are the gaps between them
  ranked = jnp.stack([jnp.sum(jnp.where(rank == r, rest, 0), axis=0) for r in range(d + 1)])
  first = 1 + ranked[d] - ranked[0]
  weight = jnp.stack([first, *(ranked[d - k] - ranked[d + 1 - k] for k in range(1, d + 1))])
  return cell, rank, weight


def corners(features: Float[Array, "n d"]) -> Corners:
  """Places every pixel and counts the vertices; nothing here depends on a capacity.

  Args:
    features: coordinates in units of the kernel's standard deviation.
  """
  n, d = features.shape
  cell, rank, weight = embed(features)
  # A coordinate is c = q (d + 1) + remainder, q from cell - 1 to cell; a neighbour has
  # q - 1 to q + 1. The last q follows from the others, as coordinates sum to zero.
  least = jnp.min(cell[:d], axis=1) - 2
  radix = jnp.max(cell[:d], axis=1) + 2 - least
  half = (d + 1) // 2
  strides = []
  for part in (radix[:half], radix[half:]):
    above = jnp.cumprod(part[::-1])[::-1]
    strides.append(jnp.concatenate([above[1:], jnp.ones(1, jnp.int32)]))
  size = [jnp.prod(part.astype(jnp.float32)) for part in (radix[:half], radix[half:])]
  packs = (size[0] < 2.0**30) & (size[1] < 2.0**30) & (size[0] * size[1] < 2.0 ** (62 - _index_bits(n)))

  high, low = [], []
  for remainder in range(d + 1):
    q = cell[:d] - (rank[:d] > d - remainder).astype(jnp.int32) - least[:, None]
    high.append(jnp.sum(q[:half] * strides[0][:, None], axis=0))
    low.append(jnp.sum(q[half:] * strides[1][:, None], axis=0))
  base = jnp.prod(radix[half:])
  words = [(a, b, base) for a, b in zip(high, low, strict=True)]
  rows = [lax.platform_dependent(*w, cpu=sort_packed, default=sort_plain) for w in words]
  high, low, pixel = (jnp.stack(part) for part in zip(*rows, strict=True))

  new = jnp.pad(
    (high[:, 1:] != high[:, :-1]) | (low[:, 1:] != low[:, :-1]), ((0, 0), (1, 0)), constant_values=True
  )
  vertex = jnp.cumsum(new.reshape(-1).astype(jnp.int32)).reshape(d + 1, n) - 1
  # One step in direction j is -1 in every coordinate and d more in the j-th: from
  # remainder k > 0 it raises q_j alone, from remainder 0 it lowers every other q.
  up = jnp.concatenate([*strides, jnp.zeros(1, jnp.int32)])
  words = jnp.stack([up.at[half:].set(0), up.at[:half].set(0)])
  step = jnp.stack([words, words - jnp.sum(words, axis=1, keepdims=True)], axis=1)
  return Corners(weight, pixel, high, low, step, vertex, vertex[-1, -1] + 1, packs)


def sort_packed(
  high: Int[Array, " n"], low: Int[Array, " n"], base: Int[Array, ""]
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]:
  """`sort_plain` by one int64 (high, low, pixel) each: XLA:CPU sorts one operand six times as fast as three.

  Args:
    high: first word of a code, sorted by first.
    low: second word, below `base`.
    base: with it, `corners` makes sure that the bits suffice.
  """
  bits = _index_bits(high.shape[0])
  index = lax.iota(jnp.int32, high.shape[0])
  with jax.enable_x64(True):
    code = high.astype(jnp.int64) * base.astype(jnp.int64) + low.astype(jnp.int64)
    word = lax.sort((code << bits) | index.astype(jnp.int64))
    order = (word & ((1 << bits) - 1)).astype(jnp.int32)
  return take(high, order), take(low, order), order


def sort_plain(
  high: Int[Array, " n"], low: Int[Array, " n"], base: Int[Array, ""]
) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]:
  """Codes (high, low) in order, and the pixels they come from; equal codes keep the pixels' order."""
  del base
  index = lax.iota(jnp.int32, high.shape[0])
  return tuple(lax.sort((high, low, index), num_keys=2, is_stable=True))


def _index_bits(n: int) -> int:
  return max(1, (n - 1).bit_length())


def build(corners: Corners, capacity: int) -> Lattice:
  """The lattice with room for `capacity` vertices; `valid` says whether that was enough."""
  remainders, n = corners.pixel.shape
  entries = remainders * n
  position = lax.iota(jnp.int32, entries)
  vertex = corners.vertex.reshape(-1)
  pixel = corners.pixel.reshape(-1)

  new = jnp.concatenate([jnp.ones(1, bool), vertex[1:] != vertex[:-1]])
  start = jnp.full(capacity, entries, jnp.int32)
  start = start.at[jnp.where(new, vertex, capacity)].set(position, mode="drop")

  # Chunks tile the sorted entries; one begins at each vertex and after each CHUNK entries of it.
  opens = (position - take(start, vertex)) % CHUNK == 0
  chunks = min(entries, entries // CHUNK + capacity)
  number = jnp.cumsum(opens.astype(jnp.int32)) - 1
  begin = jnp.full(chunks + 1, entries, jnp.int32)
  begin = begin.at[jnp.where(opens, number, chunks)].set(position, mode="drop").at[chunks].set(entries)
  slot = begin[None, :-1] + lax.iota(jnp.int32, CHUNK)[:, None]
  filled = slot < begin[None, 1:]
  slot = jnp.where(filled, slot, 0)
  chunk_pixel = take(pixel, slot)
  chunk_weight = jnp.where(filled, take(corners.weight.reshape(-1), slot // n * n + chunk_pixel), 0)
  chunk_vertex = jnp.where(begin[:-1] < entries, take(vertex, begin[:-1]), capacity)

  flat = (position // n) * n + pixel
  at_pixel = jnp.zeros(entries, jnp.int32).at[flat].set(vertex, unique_indices=True)
  return Lattice(
    weight=corners.weight,
    vertex=jnp.minimum(at_pixel, capacity).reshape(remainders, n),
    chunk_pixel=chunk_pixel,
    chunk_weight=chunk_weight,
    chunk_vertex=jnp.minimum(chunk_vertex, capacity),
    neighbour=_neighbours(corners, start),
    valid=corners.packs & (corners.count <= capacity),
  )


def _neighbours(corners: Corners, start: Int[Array, " m"]) -> Int[Array, "r 2 m1"]:
  """Both neighbours of each vertex along each direction, by binary search among the sorted codes."""
  remainders, n = corners.pixel.shape
  capacity = start.shape[0]
  exists = lax.iota(jnp.int32, capacity) < corners.count
  at = jnp.minimum(start, remainders * n - 1)
  high, low = take(corners.high.reshape(-1), at), take(corners.low.reshape(-1), at)
  remainder = at // n
  # Each remainder's vertices are one run; a step leads to the remainder below.
  runs = jnp.append(corners.vertex[:, 0], corners.count)
  target = jnp.where(remainder > 0, remainder, remainders) - 1
  begin, end = runs[target], jnp.minimum(runs[target + 1], capacity)
  from_zero = (remainder == 0).astype(jnp.int32)
  want_high = high + corners.step[0][from_zero].T
  want_low = low + corners.step[1][from_zero].T

  def halve(_, bounds):
    lower, upper = bounds
    middle = (lower + upper) // 2
    a, b = take(high, middle), take(low, middle)
    less = (a < want_high) | ((a == want_high) & (b < want_low))
    open_ = lower < upper
    return jnp.where(open_ & less, middle + 1, lower), jnp.where(open_ & ~less, middle, upper)

  shape = (remainders, capacity)
  bounds = jnp.broadcast_to(begin, shape), jnp.broadcast_to(end, shape)
  found, _ = lax.fori_loop(0, min(n, capacity).bit_length() + 1, halve, bounds)
  safe = jnp.minimum(found, capacity - 1)
  hit = (found < end) & exists & (take(high, safe) == want_high) & (take(low, safe) == want_low)
  plus = jnp.where(hit, found, capacity)
  own = jnp.broadcast_to(lax.iota(jnp.int32, capacity), shape)
  row = jnp.broadcast_to(lax.iota(jnp.int32, remainders)[:, None], shape)
  minus = jnp.full((remainders, capacity + 1), capacity, jnp.int32)
  minus = minus.at[row, plus].set(own).at[:, capacity].set(capacity)
  plus = jnp.pad(plus, ((0, 0), (0, 1)), constant_values=capacity)
  return jnp.stack([plus, minus], axis=1)
