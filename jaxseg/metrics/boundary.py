"""Boundary IoU and trimap IoU: how well contours are met, as counts by class on the device.

Boundary IoU: B. Cheng, R. Girshick, P. Dollár, A. C. Berg, A. Kirillov, "Boundary IoU", CVPR 2021. The
boundary of a mask is what an erosion by d steps of a 3×3 square takes from it, d = 0.02 of the picture's
diagonal; the score is the IoU of the two boundaries. Trimap IoU: P. Kohli, L. Ladický, P. Torr, IJCV 2009,
and the DeepLab papers: the IoU of those pixels only that are near a contour of the label.

A pixel is within d steps of another class just when it is within d − 1 steps of a pixel with a neighbour of
another class. So one map of edges, dilated by a square, stands for the erosion of every class's mask.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Integer

from jaxseg.metrics.confusion import is_counted, joint_counts
from jaxseg.types import IGNORE_LABEL, AnyArray

# Boundary IoU's share of the picture's diagonal.
DILATION = 0.02
# Pixels on each side of a contour.
TRIMAP_WIDTHS = (1, 2, 4, 8, 16)


def boundary_counts(
  pred: Integer[AnyArray, "b h w"],
  labels: Integer[AnyArray, "b h w"],
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
  sizes: Integer[AnyArray, "b 2"] | None = None,
  dilation: float = DILATION,
) -> Int[Array, "{num_classes} 3"]:
  """Pixels of both boundaries together, of the label's, and of the prediction's, for each class; int32.

  The edge of the picture is a contour, as in the authors' code, and so is that of the pixels without a
  label, of which the prediction is not looked at.

  Args:
    pred: classes.
    labels: classes; others are not counted.
    num_classes: k.
    ignore_label: a label that is not counted.
    sizes: rows and columns of each picture, the first ones of its map; None is all.
    dilation: share of the diagonal; d is rounded, and at least 1.
  """
  same = sizes is None
  pred, labels, sizes = _prepared(pred, labels, sizes)
  counted = is_counted(pred, labels, num_classes=num_classes, ignore_label=ignore_label)
  inside = _inside(labels.shape, sizes)
  most = max(round(dilation * math.hypot(*labels.shape[1:])), 1)
  steps: Any = most
  if not same:
    diagonal = jnp.sqrt(jnp.sum(sizes.astype(jnp.float32) ** 2, axis=-1))
    steps = jnp.maximum(jnp.round(dilation * diagonal), 1).astype(jnp.int32)
  at_edge = _near_the_edge(labels.shape, sizes, jnp.broadcast_to(steps, labels.shape[0]))

  def boundary(classes):
    edges = _edges(jnp.where(counted, classes, -1), inside)
    return counted & (at_edge | _dilate(edges, steps - 1, most - 1))

  of_label, of_pred = boundary(labels), boundary(pred)
  both = of_label & of_pred & (labels == pred)
  return _by_class((both, labels), (of_label, labels), (of_pred, pred), num_classes=num_classes)


def trimap_counts(
  pred: Integer[AnyArray, "b h w"],
  labels: Integer[AnyArray, "b h w"],
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
  sizes: Integer[AnyArray, "b 2"] | None = None,
  widths: tuple[int, ...] = TRIMAP_WIDTHS,
) -> Int[Array, "_ {num_classes} 3"]:
  """For each width: pixels of each class that are right, in the label, in the prediction; int32.

  Only pixels at most `width` away from a contour of the label count. The edge of the pixels without a
  label is a contour; that of the picture is not.

  Args:
    pred: classes.
    labels: classes; others are not counted.
    num_classes: k.
    ignore_label: a label that is not counted.
    sizes: as in `boundary_counts`.
    widths: rising, each at most three times the one before.
  """
  pred, labels, sizes = _prepared(pred, labels, sizes)
  counted = is_counted(pred, labels, num_classes=num_classes, ignore_label=ignore_label)
  band, reach = _edges(labels, _inside(labels.shape, sizes)), 1
  narrowest = jnp.full(labels.shape, len(widths), jnp.int32)  # number of the first width that reaches a pixel
  for i, width in enumerate(widths):
    band, reach = _grow(band, width - reach, width - reach), width
    narrowest = jnp.where(band, jnp.minimum(narrowest, i), narrowest)
  counted &= narrowest < len(widths)
  counts = [
    joint_counts(narrowest, ids, mask, (len(widths), num_classes)).sum(0)
    for mask, ids in ((counted & (labels == pred), labels), (counted, labels), (counted, pred))
  ]
  return jnp.cumsum(jnp.stack(counts, axis=-1), axis=0)


def _prepared(pred, labels, sizes):
  pred, labels = jnp.asarray(pred).astype(jnp.int32), jnp.asarray(labels).astype(jnp.int32)
  if sizes is None:
    sizes = jnp.broadcast_to(jnp.asarray(labels.shape[1:], jnp.int32), (labels.shape[0], 2))
  return pred, labels, jnp.asarray(sizes)


def _by_class(*maps: tuple[Array, Array], num_classes: int) -> Int[Array, "{num_classes} 3"]:
  counts = [joint_counts(jnp.zeros_like(ids), ids, mask, (1, num_classes)).sum((0, 1)) for mask, ids in maps]
  return jnp.stack(counts, axis=-1)


def _inside(shape, sizes) -> Bool[Array, "b h w"]:
  row, column = (jnp.arange(side) for side in shape[1:3])
  return (row < sizes[:, :1])[:, :, None] & (column < sizes[:, 1:])[:, None, :]


def _near_the_edge(shape, sizes, steps) -> Bool[Array, "b h w"]:
  near = []
  for axis in (0, 1):
    place = jnp.arange(shape[1 + axis])
    near.append((place < steps[:, None]) | (place >= sizes[:, axis, None] - steps[:, None]))
  return near[0][:, :, None] | near[1][:, None, :]


def _edges(classes, inside) -> Bool[Array, "b h w"]:
  """Whether one of a pixel's eight neighbours in the picture is of another class."""
  h, w = classes.shape[1:]
  padded = jnp.pad(classes, [(0, 0), (1, 1), (1, 1)])
  there = jnp.pad(inside, [(0, 0), (1, 1), (1, 1)])
  edges = jnp.zeros_like(inside)
  for down in range(3):
    for right in range(3):
      other = padded[:, down : down + h, right : right + w]
      edges |= there[:, down : down + h, right : right + w] & (other != classes)
  return edges & inside


def _dilate(mask, radius, most: int) -> Bool[Array, "b h w"]:
  """The mask dilated in a square, by a number or one for each image, at most `most`."""
  reach: Any = 0
  most_reach = 0
  while most_reach < most:
    # What has grown by r covers every step up to 2r + 1 without a gap.
    most_step = min(2 * most_reach + 1, most - most_reach)
    step = (
      min(most_step, radius - reach) if isinstance(radius, int) else jnp.minimum(most_step, radius - reach)
    )
    mask, reach, most_reach = _grow(mask, step, most_step), reach + step, most_reach + most_step
  return mask


def _grow(mask, step, most: int) -> Bool[Array, "b h w"]:
  """The mask and what is a step above, below, left and right of it, and diagonally.

  `step` is a number, or one for each image, at most `most`.
  """
  for axis in (1, 2):
    pad = [(0, 0)] * 3
    pad[axis] = (most, most)
    padded = jnp.pad(mask, pad)
    for start in (most - step, most + step):
      mask = mask | _cut(padded, start, mask.shape[axis], axis)
    # Or XLA makes the first of a chain of these again for each of the last.
    mask = lax.optimization_barrier(mask)
  return mask


def _cut(padded, start, length: int, axis: int):
  if isinstance(start, int):
    return lax.slice_in_dim(padded, start, start + length, axis=axis)
  cut = lambda image, start: lax.dynamic_slice_in_dim(image, start, length, axis=axis - 1)  # noqa: E731
  return jax.vmap(cut)(padded, start)
