"""A sum for each array of a state, saved beside it: bytes that changed on the disk do not train on.

Compressed arrays that were damaged mostly fail to unpack, but not always. The sum is of the bits, as
unsigned integers modulo 2^32, so it depends neither on the order nor on how an array is spread over devices.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def sums_of(trees: Mapping[str, Any]) -> dict[str, int]:
  """Path → sum, of every leaf; all processes of a job call it, since each sums the shards that it has."""
  flat = jax.tree_util.tree_flatten_with_path(trees)[0]
  parts = [_parts(leaf) for _, leaf in flat]
  for part in jax.tree.leaves(parts):  # all leave their devices before the first is waited for
    if isinstance(part, jax.Array):
      part.copy_to_host_async()
  totals = np.array([_sum(own) for own in parts], np.uint32)
  if jax.process_count() > 1 and any(isinstance(leaf, jax.Array) for _, leaf in flat):
    totals = multihost_utils.process_allgather(totals).sum(0, dtype=np.uint32)
  return {path_of(path): int(total) for (path, _), total in zip(flat, totals, strict=True)}


def path_of(path: Any) -> str:
  """A path of a tree as text: "variables/params/encoder/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _parts(leaf: Any) -> list[Any]:
  """What this process has of an array; of copies of a shard, one counts."""
  if not isinstance(leaf, jax.Array):
    return [leaf]
  return [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]


def _sum(parts: list[Any]) -> np.uint32:
  return np.sum(np.array([_bits(np.asarray(part)) for part in parts], np.uint32), dtype=np.uint32)


def _bits(x: np.ndarray) -> np.uint32:
  words = np.ascontiguousarray(x).reshape(-1).view(np.dtype(f"u{min(x.dtype.itemsize, 4)}"))
  return np.sum(words, dtype=np.uint32)
