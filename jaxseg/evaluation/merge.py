"""Views' logits → one result at the pictures' own size, a few rows at a time.

At full size, 150 classes of a large picture are gigabytes: rows are brought to that size in
turn, and only the class is kept. The views of a whole picture stay at the decoder's resolution, and rows
of all of them meet; sliding windows give every view at its own full size, so there one running sum takes each
as it comes (`add_view`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from jaxseg.evaluation import decision
from jaxseg.evaluation.counts import Terms, terms_of_logits
from jaxseg.types import AnyArray

# {"rows": b Y i, "columns": b X j}, of `views.ways_back`.
Way = Mapping[str, Float[AnyArray, "b _ _"]]

# Values that one device holds at full size at once.
_HELD = 1 << 25


def merge_labels(
  logits: Sequence[Float[AnyArray, "b _ _ k"]],
  ways: Sequence[Way | None],
  size: tuple[int, int],
  *,
  images: int,
  threshold: float | None = None,
) -> Int[Array, "b {size[0]} {size[1]}"]:
  """The class of every pixel; of several views, that of the largest mean softmax.

  Args:
    logits: of each view, as `ways` takes them.
    ways: what brings them to the pictures' size, None where they have it already.
    size: of the result.
    images: how many of them a device holds.
    threshold: None for one class a pixel, else as in `decision.py`, like in all functions here.
  """

  def classes(maps, *_):
    return decision.labels_of_logits(_merged(maps, threshold), threshold)

  return _by_rows(logits, ways, size, images, classes)


def merge_scores(
  logits: Sequence[Float[AnyArray, "b _ _ k"]],
  ways: Sequence[Way | None],
  size: tuple[int, int],
  *,
  images: int,
  threshold: float | None = None,
) -> Float[Array, "b {size[0]} {size[1]} k"]:
  """Log-probabilities of every pixel: the log softmax, or the logarithm of the views' mean softmax."""

  def scores(maps, *_):
    merged = _merged(maps, threshold)
    if len(maps) > 1 and threshold is None:
      return merged
    return decision.log_probabilities(merged, threshold)

  return _by_rows(logits, ways, size, images, scores)


def merge_terms(
  logits: Sequence[Float[AnyArray, "b _ _ k"]],
  ways: Sequence[Way | None],
  labels: Integer[AnyArray, "b y x"],
  *,
  images: int,
  terms_of: Callable[..., Any] = terms_of_logits,
  threshold: float | None = None,
) -> Terms:
  """The classes of `merge_labels` with their probabilities, and the loss of the labels, by `terms_of`."""
  size = labels.shape[1:]
  labels = labels.astype(jnp.int32)

  def terms(maps, start, rows):
    merged = _merged(maps, threshold)
    return terms_of(merged, lax.dynamic_slice_in_dim(labels, start, rows, axis=1))[0]

  return Terms(*_by_rows(logits, ways, size, images, terms))


def add_view(
  total: Float[AnyArray, "b y x k"] | None,
  logits: Float[AnyArray, "b _ _ k"],
  way: Way | None,
  *,
  size: tuple[int, int],
  images: int,
  threshold: float | None = None,
) -> Float[Array, "b y x k"]:
  """The sum of the softmaxes of the views so far, with one more; None before the first."""
  if total is None:
    total = jnp.zeros((len(logits), *size, logits.shape[-1]), jnp.float32)
  some_rows, rounds = _rows_of((logits,), (way,), size, images)
  rows = size[0] // rounds

  def add(i, total):
    (x,) = some_rows(i * rows)
    before = lax.dynamic_slice_in_dim(total, i * rows, rows, axis=1)
    added = before + decision.probabilities(x, threshold)
    return lax.dynamic_update_slice_in_dim(total, added, i * rows, axis=1)

  return lax.fori_loop(0, rounds, add, total)


def labels_of_sum(
  total: Float[AnyArray, "b y x k"], *, views: int, threshold: float | None = None
) -> Int[Array, "b y x"]:
  """`merge_labels` of views that `add_view` added up."""
  if threshold is None:
    return decision.labels_of_logits(total)
  return decision.labels_of_logits(decision.logits_of(total / views, threshold), threshold)


def terms_of_sum(
  total: Float[AnyArray, "b y x k"],
  labels: Integer[AnyArray, "b y x"],
  *,
  views: int,
  terms_of: Callable[..., Any] = terms_of_logits,
  threshold: float | None = None,
) -> Terms:
  """`merge_terms` of views that `add_view` added up."""
  merged = decision.logits_of(total / views, threshold)
  return Terms(*terms_of(merged, labels.astype(jnp.int32))[0])


def scores_of_sum(total: Float[AnyArray, "b y x k"], *, views: int) -> Float[Array, "b y x k"]:
  """`merge_scores` of views that `add_view` added up."""
  return decision.logits_of(total / views)  # of softmax or sigmoid: the logarithm


def _merged(maps, threshold):
  """Logits of the views' mean probabilities; of one view as they are."""
  if len(maps) == 1:
    return maps[0]
  mean = sum(decision.probabilities(logits, threshold) for logits in maps) / len(maps)
  return decision.logits_of(mean, threshold)


def _by_rows(logits, ways, size, images, finish):
  """`finish` of (the views' maps, first row, rows), some rows at a time; of every array that it returns."""
  some_rows, rounds = _rows_of(logits, ways, size, images)
  rows = size[0] // rounds
  if rounds == 1:
    return finish(some_rows(0), 0, rows)
  starts = jnp.arange(rounds) * rows
  parts = lax.map(lambda start: finish(some_rows(start), start, rows), starts)  # n b rows ...

  def joined(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], size[0], *x.shape[3:])

  return jax.tree.map(joined, parts)


def _rows_of(logits, ways, size, images):
  """(first row → some rows of every view at full size, how often to call it for all rows)."""
  height, width = size
  values = images * width * logits[0].shape[-1]
  fits = (n for n in range(1, height) if height % n == 0 and height // n * values <= _HELD)
  rounds = next(fits, height)
  rows = height // rounds
  fitted = [_fit(x, size) if way is None else x for x, way in zip(logits, ways, strict=True)]

  def some_rows(start):
    maps = []
    for x, way in zip(fitted, ways, strict=True):
      if way is None:
        maps.append(lax.dynamic_slice_in_dim(x, start, rows, axis=1))
        continue
      here = lax.dynamic_slice_in_dim(way["rows"], start, rows, axis=1)
      x = jnp.einsum("byi,bijk->byjk", here, x, precision=lax.Precision.HIGHEST)
      maps.append(jnp.einsum("bxj,byjk->byxk", way["columns"], x, precision=lax.Precision.HIGHEST))
    return maps

  return some_rows, rounds


def _fit(x, size):
  """Cut off or filled up with zeros, below and right."""
  x = x[:, : size[0], : size[1]]
  return jnp.pad(x, [(0, 0), (0, size[0] - x.shape[1]), (0, size[1] - x.shape[2]), (0, 0)])
