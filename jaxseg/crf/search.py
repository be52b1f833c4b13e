"""The DeepLab papers' search for w1, σα and σβ on some validation images, coarse to fine.

The smoothness kernel stays at w2 = 3, σγ = 3. v1 (arXiv:1412.7062 §4.1) takes w1 from
5 to 10, σα from 50 to 100, σβ from 3 to 10 on 100 images, v2 (arXiv:1606.00915) w1
from 3 to 6, σα from 30 to 100, σβ from 3 to 6; both then refine around the best.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from jaxseg.crf.refine import Kernels, Number, Refiner, papers_kernels
from jaxseg.errors import UserError
from jaxseg.metrics import confusion_matrix, mean_iou
from jaxseg.types import IGNORE_LABEL, AnyArray

Setting = tuple[float, float, float]  # (w1, σα, σβ)


class Grid(NamedTuple):
  """The values to try of each of the three."""

  w1: tuple[Number, ...]
  sxy: tuple[Number, ...]
  srgb: tuple[Number, ...]

  def settings(self) -> list[Setting]:
    """All combinations.

    Raises:
      UserError: there is none, or a value that is no weight or width.
    """
    settings = list(itertools.product(*(map(float, values) for values in self)))
    if not settings:
      raise UserError(
        f"the grid is empty: w1={self.w1}, sxy={self.sxy}, srgb={self.srgb}; give each at least one value"
      )
    for name, values in self._asdict().items():
      wrong = [value for value in values if not 0 < value < float("inf")]
      if wrong:
        raise UserError(f"the grid has {name} {wrong[0]}; expected values above 0")
    return settings


# The papers' first rounds.
GRIDS = {
  "v1": Grid(tuple(range(5, 11)), tuple(range(50, 101, 10)), tuple(range(3, 11))),
  "v2": Grid(tuple(range(3, 7)), tuple(range(30, 101, 10)), tuple(range(3, 7))),
}


class Search(NamedTuple):
  """What a search found; settings are (w1, σα, σβ)."""

  setting: Setting
  miou: float
  kernels: Kernels  # of the best setting
  tried: dict[Setting, float]  # setting → mIoU, in the order tried
  without: float  # mIoU of argmin(unary)


def grid_search(
  unaries: Iterable[AnyArray],
  images: Iterable[AnyArray],
  labels: Iterable[AnyArray],
  *,
  w1: Sequence[Number] = GRIDS["v2"].w1,
  sxy: Sequence[Number] = GRIDS["v2"].sxy,
  srgb: Sequence[Number] = GRIDS["v2"].srgb,
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
    UserError: an empty grid or no examples, and as `mean_field`.
  """
  settings = Grid(tuple(w1), tuple(sxy), tuple(srgb)).settings()
  refiner = Refiner(steps=steps, method=method)
  totals, without = {}, 0
  for done, (unary, image, label) in enumerate(zip(unaries, images, labels, strict=True), start=1):
    without = without + count(-np.asarray(unary), label, ignore_label=ignore_label)
    for setting, matrix in try_settings(
      unary, image, label, settings, refiner=refiner, w2=w2, smooth=smooth, ignore_label=ignore_label
    ):
      totals[setting] = totals.get(setting, 0) + matrix
    if progress is not None:
      progress(done)
  if not totals:
    raise UserError("there are no examples to search on; pass at least one unary, image and label")
  return best_of(totals, without, w2=w2, smooth=smooth)


def try_settings(
  unary: Float[AnyArray, "h w k"],
  image: AnyArray,
  label: Integer[AnyArray, "h w"],
  settings: Iterable[Setting],
  *,
  refiner: Refiner,
  w2: Number = 3.0,
  smooth: Number = 3.0,
  ignore_label: int = IGNORE_LABEL,
) -> Iterator[tuple[Setting, Integer[np.ndarray, "k k"]]]:
  """Each setting with its confusion matrix [truth, prediction] on one example, when it is asked for."""
  for setting in settings:
    refined = refiner(unary, image, papers_kernels(*setting, w2=w2, smooth=smooth))
    yield setting, count(refined, label, ignore_label=ignore_label)


def best_of(
  totals: Mapping[Setting, Integer[np.ndarray, "k k"]],
  without: Integer[np.ndarray, "k k"],
  *,
  w2: Number = 3.0,
  smooth: Number = 3.0,
) -> Search:
  """The search's result, from each setting's confusion matrix over all examples; of equals the first is best.

  A setting without a single labelled pixel counts as 0.
  """
  tried = {setting: mean_iou(matrix) for setting, matrix in totals.items()}
  best = max(tried, key=lambda setting: np.nan_to_num(tried[setting]))
  return Search(best, tried[best], papers_kernels(*best, w2=w2, smooth=smooth), tried, mean_iou(without))


def count(
  scores: Float[AnyArray, "h w k"], label: Integer[AnyArray, "h w"], *, ignore_label: int = IGNORE_LABEL
) -> Integer[np.ndarray, "k k"]:
  """int64 confusion matrix [truth, prediction] of one example's scores.

  Raises:
    UserError: scores and label of different sizes.
  """
  if np.shape(scores)[:2] != np.shape(label):
    raise UserError(f"label has shape {np.shape(label)}; expected the size of the image, {scores.shape[:2]}")
  pred, label = np.argmax(np.asarray(scores), axis=-1).reshape(1, -1), np.asarray(label).reshape(1, -1)
  # Padded to a round length, lest every picture size compile the count.
  pad = ((0, 0), (0, -label.size % 2**14))
  label = np.pad(label.astype(np.int32), pad, constant_values=ignore_label)
  matrix = confusion_matrix(
    np.pad(pred, pad), label, num_classes=np.shape(scores)[-1], ignore_label=ignore_label
  )
  return np.asarray(matrix, np.int64)


def refined_grid(
  values: Sequence[Number], best: Number, *, points: int = 2, beyond: bool = False
) -> tuple[float, ...]:
  """A finer grid around the best of a coarse one: `points` even steps towards each neighbour, ends excluded.

  `beyond` goes on past an end of the grid where that is best, by its last gap but never to 0: the
  papers' own best σα of 121 lies beyond the range that they name.

  >>> refined_grid((30, 40, 50), 40, points=1)
  (35.0, 40.0, 45.0)
  >>> refined_grid((30, 40, 50), 50, points=1, beyond=True)
  (45.0, 50.0, 55.0)

  Raises:
    UserError: `best` is not one of `values`.
  """
  ordered, best = sorted(set(map(float, values))), float(best)
  if best not in ordered:
    raise UserError(f"best is {best}; expected one of the grid's values {tuple(ordered)}")
  if beyond and len(ordered) > 1:
    lower = [ordered[0] - (ordered[1] - ordered[0])] if ordered[0] == best else []
    upper = [ordered[-1] + (ordered[-1] - ordered[-2])] if ordered[-1] == best else []
    ordered = [max(value, 0.0) for value in lower] + ordered + upper
  at = ordered.index(best)
  fine = [best]
  for neighbour in {max(at - 1, 0), min(at + 1, len(ordered) - 1)} - {at}:
    gap = ordered[neighbour] - best
    fine += [best + gap * step / (points + 1) for step in range(1, points + 1)]
  return tuple(sorted(fine))
