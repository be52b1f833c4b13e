"""Everything that an evaluation counts, as integers on the device, and their sums over a split.

Fixed-size arrays of whole numbers: their sum over images, devices and processes is the same in any order, so
that scores do not depend on batches or on the mesh.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxseg.metrics import iou_of_counts, mean_over_classes
from jaxseg.metrics.boundary import boundary_counts, trimap_counts
from jaxseg.metrics.calibration import calibration_counts, loss_counts
from jaxseg.metrics.confusion import confusion_matrices, is_counted
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
    matrices: confusion matrix [truth, prediction] of each image.
    boundary: `jaxseg.metrics.boundary_counts`.
    trimap: `jaxseg.metrics.trimap_counts`.
    calibration: `jaxseg.metrics.calibration_counts`; None without probabilities.
    loss: `jaxseg.metrics.loss_counts`; None without probabilities.
  """

  matrices: Int[Array, "b k k"]
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


def count_all(
  terms: Terms,
  labels: Integer[AnyArray, "b h w"],
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
  sizes: Integer[AnyArray, "b 2"] | None = None,
) -> Counts:
  """Counts of a batch; `sizes` (rows, columns) where pictures fill only the first part of their maps."""
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

  def matrix(self, num_classes: int) -> Integer[np.ndarray, "k k"]:
    """int64 [truth, prediction]."""
    matrix = np.zeros(num_classes**2, np.int64)
    matrix[self.cells] = self.pixels
    return matrix.reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Details:
  """The counts of a split beside its confusion matrix, int64; see `Counts`.

  Attributes:
    images: those with a labelled pixel, in the order of the split.
    num_classes: k.
  """

  boundary: np.ndarray
  trimap: np.ndarray
  calibration: np.ndarray | None
  loss: np.ndarray | None
  images: tuple[ImageCounts, ...]
  num_classes: int

  def image_iou(self, absent: str = "mmsegmentation") -> Float[np.ndarray, "n"]:
    """Mean IoU of each of `images`, over its own classes."""
    scores = []
    for image in self.images:
      matrix = image.matrix(self.num_classes)
      hits = np.diag(matrix)
      iou = iou_of_counts(np.stack([hits, matrix.sum(1), matrix.sum(0)], axis=-1))
      scores.append(mean_over_classes(iou, absent=absent))
    return np.array(scores, np.float64)


class Sums:
  """Adds the `Counts` of batches."""

  def __init__(self, num_classes: int):
    self.matrix = np.zeros((num_classes, num_classes), np.int64)
    self._num_classes = num_classes
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
      num_classes=self._num_classes,
    )
