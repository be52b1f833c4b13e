"""Everything that an evaluation counts, as integers on the device, and their sums over a split.

Fixed-size arrays of whole numbers: their sum over images, devices and processes is the same in any order, so
that scores do not depend on batches or on the mesh.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxseg.classes import members
from jaxseg.evaluation.decision import labels_of_logits
from jaxseg.metrics import iou_per_class, mean_over_classes
from jaxseg.metrics.boundary import boundary_counts, trimap_counts
from jaxseg.metrics.calibration import calibration_counts, loss_counts
from jaxseg.metrics.confusion import confusion_matrices, confusion_matrix, is_counted
from jaxseg.types import IGNORE_LABEL, AnyArray


class Terms(NamedTuple):
  """What is known of every pixel.

  Attributes:
    pred: class.
    confidence: its probability; None where the model gives label maps.
    loss: negative log probability of the label, in nats, likewise; anything where the label is no class.
  """

  pred: Integer[AnyArray, "b h w"]
  confidence: Float[AnyArray, "b h w"] | None = None
  loss: Float[AnyArray, "b h w"] | None = None


class Counts(NamedTuple):
  """Of one batch, int32.

  Attributes:
    matrices: confusion matrix [truth, prediction] of each image; where pixels have several classes, one of
      two rows and columns, no and yes, for each class.
    boundary: `jaxseg.metrics.boundary_counts`.
    trimap: `jaxseg.metrics.trimap_counts`.
    calibration: `jaxseg.metrics.calibration_counts`; None without probabilities.
    loss: `jaxseg.metrics.loss_counts`; None without probabilities.
  """

  matrices: Int[Array, "b k k"] | Int[Array, "b k 2 2"]
  boundary: Int[Array, "k 3"]
  trimap: Int[Array, "w k 3"]
  calibration: Int[Array, "n 8"] | None
  loss: Int[Array, "k 7"] | None


def terms_of_logits(
  logits: Float[AnyArray, "*b k"], labels: Integer[AnyArray, "*b"]
) -> tuple[tuple[Int[Array, "*b"], Float[Array, "*b"], Float[Array, "*b"]], tuple[()]]:
  """`Terms` of logits (or log probabilities) at the labels' resolution, as a function for `ops.upsampled`."""
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  target = labels[..., None] == jnp.arange(logits.shape[-1])
  true_logit = jnp.sum(jnp.where(target, logits, 0.0), axis=-1)
  confidence = jnp.exp(jnp.max(logits, axis=-1) - log_normaliser)
  return (jnp.argmax(logits, axis=-1).astype(jnp.int32), confidence, log_normaliser - true_logit), ()


@functools.cache
def terms_for(threshold: float | None) -> Callable[..., Any]:
  """`terms_of_logits`; with a threshold the labels of several classes alone (`decision.py`)."""
  if threshold is None:
    return terms_of_logits
  return lambda logits, _: ((labels_of_logits(logits, threshold),), ())


def confusion_counts(
  pred: Integer[AnyArray, "b h w"],
  labels: Integer[AnyArray, "b h w"],
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
  multi_label: bool = False,
) -> Int[Array, "k k"] | Int[Array, "k 2 2"]:
  """The confusion matrix, or where pixels have several classes that of each, of no and yes."""
  if not multi_label:
    return confusion_matrix(pred, labels, num_classes=num_classes, ignore_label=ignore_label)
  by_class = _by_class(pred, labels, num_classes, ignore_label)
  count = functools.partial(confusion_matrix, num_classes=2, ignore_label=ignore_label)
  return jax.lax.map(lambda pair: count(*pair), by_class)


def _by_class(pred, labels, num_classes, ignore_label):
  """(prediction, label) of no and yes for each class, k b h w; `ignore_label` stays what it is."""
  pred, labels = (jnp.asarray(x).astype(jnp.int32) for x in (pred, labels))
  yes = [jnp.moveaxis(members(x, num_classes), -1, 0).astype(jnp.int32) for x in (pred, labels)]
  return yes[0], jnp.where(labels == ignore_label, ignore_label, yes[1])


def count_all(
  terms: Terms,
  labels: Integer[AnyArray, "b h w"],
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
  sizes: Integer[AnyArray, "b 2"] | None = None,
  multi_label: bool = False,
) -> Counts:
  """Counts of a batch; `sizes` (rows, columns) where pictures fill only the first part of their maps.

  Of labels of several classes each class is counted by itself, without calibration and loss.
  """
  if multi_label:
    both = dict(num_classes=2, ignore_label=ignore_label)

    def of_class(pair):
      pred, truth = pair
      boundary, trimap = (f(pred, truth, sizes=sizes, **both) for f in (boundary_counts, trimap_counts))
      return confusion_matrices(pred, truth, **both), boundary[1], trimap[:, 1]

    by_class = _by_class(terms.pred, labels, num_classes, ignore_label)
    matrices, boundary, trimap = jax.lax.map(of_class, by_class)
    return Counts(jnp.moveaxis(matrices, 0, 1), boundary, jnp.moveaxis(trimap, 0, 1), None, None)
  settings = dict(num_classes=num_classes, ignore_label=ignore_label)
  labels = jnp.asarray(labels).astype(jnp.int32)
  pred = jnp.asarray(terms.pred).astype(jnp.int32)
  counted = is_counted(pred, labels, **settings)
  calibration = loss = None
  if terms.confidence is not None:
    calibration = calibration_counts(terms.confidence, pred == labels, counted)
    loss = loss_counts(terms.loss, labels, counted, num_classes=num_classes)
  return Counts(
    matrices=confusion_matrices(pred, labels, **settings),
    boundary=boundary_counts(pred, labels, sizes=sizes, **settings),
    trimap=trimap_counts(pred, labels, sizes=sizes, **settings),
    calibration=calibration,
    loss=loss,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class ImageCounts:
  """The confusion matrix of one image, of which only the cells that are not 0 are kept.

  Attributes:
    index: of the image in its split.
    name: its id; "" where this process did not read it.
    cells: numbers of the cells, truth · k + prediction.
    pixels: of each.
  """

  index: int
  name: str
  cells: np.ndarray
  pixels: np.ndarray

  def matrix(self, shape: tuple[int, ...]) -> Integer[np.ndarray, "*k k"]:
    """int64 [truth, prediction], of the split's matrix's shape."""
    matrix = np.zeros(shape, np.int64)
    matrix.reshape(-1)[self.cells] = self.pixels
    return matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Details:
  """The counts of a split beside its confusion matrix, int64; see `Counts`.

  Attributes:
    images: those with a labelled pixel, in the order of the split.
    shape: of the split's confusion matrix.
  """

  boundary: np.ndarray
  trimap: np.ndarray
  calibration: np.ndarray | None
  loss: np.ndarray | None
  images: tuple[ImageCounts, ...]
  shape: tuple[int, ...]

  def image_iou(self, absent: str = "mmsegmentation") -> Float[np.ndarray, "n"]:
    """Mean IoU of each of `images`, over its own classes."""
    scores = []
    for image in self.images:
      scores.append(mean_over_classes(iou_per_class(image.matrix(self.shape)), absent=absent))
    return np.array(scores, np.float64)


class Sums:
  """Adds the `Counts` of batches."""

  def __init__(self, num_classes: int, *, multi_label: bool = False):
    shape = (num_classes, 2, 2) if multi_label else (num_classes, num_classes)
    self.matrix = np.zeros(shape, np.int64)
    self._sums: dict[str, np.ndarray | None] = {}
    self._images: list[ImageCounts] = []

  def add(self, counts: Counts, members: Sequence[tuple[int, str]]) -> None:
    """`members` are (index, name) of the batch's images; rows beyond them are fillers."""
    matrices = np.asarray(counts.matrices, np.int64)
    self.matrix += matrices.sum(0)
    for (index, name), matrix in zip(members, matrices, strict=False):
      cells = np.flatnonzero(matrix)
      if cells.size:
        self._images.append(ImageCounts(index, name, cells, matrix.reshape(-1)[cells]))
    for name in ("boundary", "trimap", "calibration", "loss"):
      batch = getattr(counts, name)
      if batch is not None:
        self._sums[name] = np.asarray(batch, np.int64) + self._sums.get(name, 0)

  def add_up(self, over_processes: Callable[[np.ndarray], np.ndarray]) -> None:
    """Takes the sum over all processes of everything but the images."""
    self.matrix = over_processes(self.matrix)
    self._sums = {name: over_processes(self._sums[name]) for name in sorted(self._sums)}

  def details(self) -> Details:
    """Of all batches so far."""
    return Details(
      boundary=self._sums["boundary"],
      trimap=self._sums["trimap"],
      calibration=self._sums.get("calibration"),
      loss=self._sums.get("loss"),
      images=tuple(sorted(self._images, key=lambda image: image.index)),
      shape=self.matrix.shape,
    )
