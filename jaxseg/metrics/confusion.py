"""Counts of pixels on the device: the confusion matrix, and sums that are exact in whatever order."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxseg.types import IGNORE_LABEL, AnyArray

# Pixels of an image whose one-hot codes are held at once on an accelerator.
_CHUNK = 1 << 15
# A value in [0, 1] is summed as an integer of 24 bits, in digits of 4: int32 then holds the digits' sums over
# 2^31 / 15 = 143 million pixels of a batch, and no order of adding changes them.
DIGITS = 6
_DIGIT_BITS = 4
_SCALE = 1 << (DIGITS * _DIGIT_BITS)


def confusion_matrix(
  pred: Integer[AnyArray, "b *n"],
  labels: Integer[AnyArray, "b *n"],
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
) -> Int[Array, "{num_classes} {num_classes}"]:
  """Pixel counts `matrix[truth, prediction]`, int32 and exact; add batches in int64 on the host.

  A pixel counts when its label and its prediction both are a class; `ignore_label` is
  never one, even when it is smaller than `num_classes`.

  Two forms of the same count: adding at an index (XLA:CPU: 0.6 ms for 0.7 Mpixel, where
  the product takes 31 ms for 11 classes and 430 ms for 150), and a product of one-hot
  codes for backends that add at colliding indices one by one.
  """
  return confusion_matrices(pred, labels, num_classes=num_classes, ignore_label=ignore_label).sum(0)


def confusion_matrices(
  pred: Integer[AnyArray, "b *n"],
  labels: Integer[AnyArray, "b *n"],
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
) -> Int[Array, "b {num_classes} {num_classes}"]:
  """`confusion_matrix` of each image."""
  counted = is_counted(pred, labels, num_classes=num_classes, ignore_label=ignore_label)
  return joint_counts(labels, pred, counted, (num_classes, num_classes))


def is_counted(
  pred: Integer[AnyArray, "*n"], labels: Integer[AnyArray, "*n"], *, num_classes: int, ignore_label: int
) -> Bool[Array, "*n"]:
  """Where the label and the prediction both are a class, and the label is not the one to ignore."""
  pred, labels = jnp.asarray(pred).astype(jnp.int32), jnp.asarray(labels).astype(jnp.int32)
  counted = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
  return counted & (pred >= 0) & (pred < num_classes)


def joint_counts(
  rows: Integer[AnyArray, "b *n"],
  columns: Integer[AnyArray, "b *n"],
  counted: Bool[AnyArray, "b *n"],
  shape: tuple[int, int],
) -> Int[Array, "b {shape[0]} {shape[1]}"]:
  """How often each pair (row, column) occurs in each image among the pixels that count, int32 and exact."""
  batch = jnp.shape(rows)[0]
  rows, columns = (jnp.asarray(x).astype(jnp.int32).reshape(batch, -1) for x in (rows, columns))
  counted = jnp.asarray(counted).reshape(batch, -1)
  cells = shape[0] * shape[1]

  def by_index():
    index = jnp.where(counted, rows * shape[1] + columns, cells)  # the last bin is dropped
    index = index + jnp.arange(batch, dtype=jnp.int32)[:, None] * (cells + 1)
    counts = jnp.bincount(index.reshape(-1), length=batch * (cells + 1))
    return counts.reshape(batch, cells + 1)[:, :-1].reshape(batch, *shape).astype(jnp.int32)

  def by_product():
    codes = lambda columns: jax.nn.one_hot(columns, shape[1], dtype=jnp.bfloat16)  # noqa: E731
    return _sum_by_row(jnp.where(counted, rows, -1), columns, codes, shape)

  return lax.platform_dependent(cpu=by_index, default=by_product)


def digit_sums(
  bins: Integer[AnyArray, "b *n"],
  values: Float[AnyArray, "b *n"],
  counted: Bool[AnyArray, "b *n"],
  num_bins: int,
) -> Int[Array, "{num_bins} 7"]:
  """How many pixels each bin has, then the sum of their values in digits; `sum_of_digits` reads it.

  Args:
    bins: of each pixel.
    values: in [0, 1], rounded to 24 bits.
    counted: which pixels count.
    num_bins: of the result.
  """
  batch = jnp.shape(bins)[0]
  bins = jnp.asarray(bins).astype(jnp.int32).reshape(batch, -1)
  counted = jnp.asarray(counted).reshape(batch, -1)
  fixed = jnp.round(jnp.clip(jnp.asarray(values), 0.0, 1.0) * _SCALE).astype(jnp.int32).reshape(batch, -1)
  fixed = jnp.minimum(fixed, _SCALE - 1)
  shifts = [_DIGIT_BITS * i for i in range(DIGITS)]

  def digits(fixed):
    return [jnp.ones_like(fixed), *((fixed >> shift) & (2**_DIGIT_BITS - 1) for shift in shifts)]

  def by_index():
    index = jnp.where(counted, bins, num_bins).reshape(-1)
    sums = [jnp.bincount(index, weights=x.reshape(-1), length=num_bins + 1) for x in digits(fixed)]
    return jnp.stack(sums, axis=-1)[:-1].astype(jnp.int32)

  def by_product():
    codes = lambda fixed: jnp.stack(digits(fixed), axis=-1).astype(jnp.bfloat16)  # noqa: E731
    return _sum_by_row(jnp.where(counted, bins, -1), fixed, codes, (num_bins, 1 + DIGITS)).sum(0)

  return lax.platform_dependent(cpu=by_index, default=by_product)


def sum_of_digits(sums: Integer[AnyArray, "*n 7"]) -> Float[np.ndarray, "*n"]:
  """The sums of the values, from `digit_sums` (of batches added in int64), in float64 on the host."""
  digits = np.asarray(sums)[..., 1:].astype(np.float64)
  return digits @ (2.0 ** (_DIGIT_BITS * np.arange(DIGITS))) / _SCALE


def _one_hot_product(pred, labels, num_classes: int):
  """`confusion_matrix` in its accelerator form, where every prediction is a class."""
  codes = lambda pred: jax.nn.one_hot(pred, num_classes, dtype=jnp.bfloat16)  # noqa: E731
  return _sum_by_row(labels, pred, codes, (num_classes, num_classes)).sum(0)


def _sum_by_row(rows, x, codes, shape: tuple[int, int]):
  """For each image and row number, the sum of `codes(x)`, whole numbers below 16; a row of -1 is left out.

  Exact: a chunk's sums stay below 2^24 in float32, and chunks are added as integers.
  """
  pixels = rows.shape[1]
  chunk = min(_CHUNK, max(pixels, 1))
  pad = [(0, 0), (0, -pixels % chunk)]
  rows = jnp.pad(rows, pad, constant_values=-1)
  x = jnp.pad(x, pad)

  def add(total, start):
    here = [lax.dynamic_slice_in_dim(y, start, chunk, axis=1) for y in (rows, x)]
    one_hot = jax.nn.one_hot(here[0], shape[0], dtype=jnp.bfloat16)
    sums = jnp.einsum("bnk,bnl->bkl", one_hot, codes(here[1]), preferred_element_type=jnp.float32)
    return total + sums.astype(jnp.int32), None

  total = jnp.zeros((rows.shape[0], *shape), jnp.int32)
  return lax.scan(add, total, jnp.arange(0, rows.shape[1], chunk))[0]
