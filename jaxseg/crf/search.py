"""The DeepLab papers' search for w1, σα and σβ on some validation images, coarse to fine.

The smoothness kernel stays at w2 = 3, σγ = 3. v1 (arXiv:1412.7062 §4.1) takes w1 from
5 to 10, σα from 50 to 100, σβ from 3 to 10 on 100 images, v2 (arXiv:1606.00915) w1
from 3 to 6, σα from 30 to 100, σβ from 3 to 6; both then refine around the best.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from jaxseg.crf.mean_field import mean_field
from jaxseg.metrics import confusion_matrix, mean_iou
from jaxseg.types import IGNORE_LABEL, AnyArray

Number = int | float

# (sxy, srgb, compat) each, as `mean_field` takes them.
Kernels = tuple[tuple[Number, Number | None, Number], ...]


class Search(NamedTuple):
  """What a search found; settings are (w1, σα, σβ)."""

  setting: tuple[float, float, float]
  miou: float
  kernels: Kernels  # of the best setting
  tried: dict[tuple[float, float, float], float]  # setting → mIoU, in the order tried
  without: float  # mIoU of argmin(unary)


def papers_kernels(
  w1: Number, sxy: Number, srgb: Number, *, w2: Number = 3.0, smooth: Number = 3.0
) -> Kernels:
  """The papers' two kernels: smoothness (w2, σγ) and appearance (w1, σα, σβ), in that order."""
  return ((smooth, None, w2), (sxy, srgb, w1))


def grid_search(
  unaries: Iterable[AnyArray],
  images: Iterable[AnyArray],
  labels: Iterable[AnyArray],
  *,
  w1: Sequence[Number] = (3, 4, 5, 6),
  sxy: Sequence[Number] = tuple(range(30, 101, 10)),
  srgb: Sequence[Number] = (3, 4, 5, 6),
  w2: Number = 3.0,
  smooth: Number = 3.0,
  steps: int = 10,
  method: str = "lattice",
  ignore_label: int = IGNORE_LABEL,
  progress: Callable[[int], None] | None = None,
) -> Search:
  """Mean IoU of every setting in the grid; each example is read once, all settings on it in turn.

  Args:
    unaries: negative log probabilities, h w k each.
    images: RGB in 0..255, h w 3 each.
    labels: h w each, `ignore_label` where there is none.
    progress: called with the number of examples done.

  Raises:
    ValueError: an empty grid or no examples, and as `mean_field`.
  """
  grid = list(itertools.product(map(float, w1), map(float, sxy), map(float, srgb)))
  if not grid:
    raise ValueError(f"the grid is empty: w1={w1}, sxy={sxy}, srgb={srgb}; give each at least one value")
  totals, without, done = None, 0, 0
  for done, (unary, image, label) in enumerate(zip(unaries, images, labels, strict=True), start=1):
    count = partial(_count, np.asarray(label), unary.shape[-1], ignore_label)
    without = without + count(-np.asarray(unary))
    results = []
    for setting in grid:
      kernels = papers_kernels(*setting, w2=w2, smooth=smooth)
      results.append(count(np.asarray(mean_field(unary, image, kernels, steps, method))))
    totals = np.stack(results) if totals is None else totals + np.stack(results)
    if progress is not None:
      progress(done)
  if totals is None:
    raise ValueError("there are no examples to search on; pass at least one unary, image and label")
  tried = {setting: mean_iou(matrix) for setting, matrix in zip(grid, totals, strict=True)}
  best = max(tried, key=tried.__getitem__)
  return Search(best, tried[best], papers_kernels(*best, w2=w2, smooth=smooth), tried, mean_iou(without))


def _count(
  label: Integer[np.ndarray, "h w"], num_classes: int, ignore_label: int, scores: Float[np.ndarray, "h w k"]
) -> Integer[np.ndarray, "k k"]:
  pred = np.argmax(scores, axis=-1)[None]
  matrix = confusion_matrix(pred, label[None], num_classes=num_classes, ignore_label=ignore_label)
  return np.asarray(matrix, np.int64)


def refined_grid(values: Sequence[Number], best: Number, *, points: int = 2) -> tuple[float, ...]:
  """A finer grid around the best of a coarse one: `points` even steps towards each neighbour, ends excluded.

  >>> refined_grid((30, 40, 50), 40, points=1)
  (35.0, 40.0, 45.0)

  Raises:
    ValueError: `best` is not one of `values`.
  """
  ordered = sorted(map(float, values))
  if float(best) not in ordered:
    raise ValueError(f"best is {best}; expected one of the grid's values {tuple(ordered)}")
  at = ordered.index(float(best))
  fine = [float(best)]
  for neighbour in {max(at - 1, 0), min(at + 1, len(ordered) - 1)} - {at}:
    gap = ordered[neighbour] - float(best)
    fine += [float(best) + gap * step / (points + 1) for step in range(1, points + 1)]
  return tuple(sorted(fine))
