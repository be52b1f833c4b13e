"""Which images a report shows: the best, the worst, and those of the most confused pairs of classes."""

import dataclasses

import numpy as np

from jaxseg.evaluation.report import Report


@dataclasses.dataclass(frozen=True)
class Chosen:
  """An image to show.

  Attributes:
    index: in its split.
    group: "worst", "best" or "confused".
    score: mean IoU of the image.
    pair: (truth, prediction) of the classes that are confused in it.
    pixels: of the pair, in this image.
  """

  index: int
  group: str
  score: float
  pair: tuple[int, int] | None = None
  pixels: int = 0


def confused_pairs(matrix: np.ndarray, *, most: int) -> list[tuple[int, int, int]]:
  """(truth, prediction, pixels) of the largest cells beside the diagonal, largest first.

  None where pixels have several classes, which are not taken for each other.
  """
  if matrix.ndim > 2:
    return []
  wrong = np.array(matrix, np.int64)
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind="stable")[:most]
  cells = [np.unravel_index(i, wrong.shape) for i in order]
  return [(int(t), int(p), int(wrong[t, p])) for t, p in cells if wrong[t, p]]


def choose_images(report: Report, *, most: int = 12) -> list[Chosen]:
  """Images of `report.details`; each is in one group only, and every process chooses the same.

  Of twelve, five are the worst, three the best, four those in which the most confused pairs are.
  """
  if report.details is None or most < 1:
    return []
  worst, best = -(-most * 5 // 12), most // 4
  confused = most - worst - best
  images = report.details.images
  scores = report.details.image_iou(report.absent)
  order = np.argsort(np.nan_to_num(scores, nan=1.0), kind="stable")
  taken: set[int] = set()

  def take(places, group, most):
    chosen = []
    for place in places:
      if len(chosen) == most:
        break
      if place not in taken:
        taken.add(place)
        chosen.append(Chosen(images[place].index, group, float(scores[place])))
    return chosen

  chosen = take([int(i) for i in order], "worst", worst)
  chosen += take([int(i) for i in order[::-1]], "best", best)
  for truth, prediction, _ in confused_pairs(report.matrix, most=confused):
    cell = truth * len(report.matrix) + prediction
    counts = [int(image.pixels[image.cells == cell].sum()) for image in images]
    for place in np.argsort([-n for n in counts], kind="stable"):
      if counts[place] and int(place) not in taken:
        taken.add(int(place))
        chosen.append(
          Chosen(images[place].index, "confused", float(scores[place]), (truth, prediction), counts[place])
        )
        break
  return chosen
