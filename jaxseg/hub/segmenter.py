"""A net under one test-time rule, for images of any sizes: which share a batch, their labels and scores."""

import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxseg import lazy
from jaxseg.crf import Refiner
from jaxseg.evaluation.canvases import MOST_CANVASES
from jaxseg.evaluation.predictor import Predictor
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.evaluation.views import collate
from jaxseg.types import AnyArray, Preprocess


class Segmenter:
  """What `Net.predict_batch` and `jaxseg predict` are made of; each input size is compiled once.

  Args:
    model: with a segmentation head.
    variables: its own.
    preprocess: how it wants its image.
    rule: how an image reaches the network.
    crf: arguments of `jaxseg.crf.mean_field` (kernels, steps, method), or None.
    inputs: size of an image → size to which it is resized for the network, where that is another.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    preprocess: Preprocess,
    rule: InferenceRule,
    crf: Mapping[str, Any] | None = None,
    inputs: Mapping[tuple[int, int], tuple[int, int]] | None = None,
  ):
    self.rule = rule
    self._inputs = inputs or {}
    self._model, self._variables, self._preprocess, self._crf = model, variables, preprocess, crf
    self._predictor = _predictor(model, preprocess, rule)
    if crf is not None:
      self._refine = Refiner(steps=crf.get("steps", 10), method=crf.get("method", "exact"))

  @property
  def preprocess(self) -> Preprocess:
    """How the network wants its image."""
    return self._preprocess

  def key(self, size: tuple[int, int]) -> Hashable:
    """What images of one batch have in common, from an image's rows and columns."""
    return self.rule.key(self._preprocess.size or self._inputs.get(tuple(size), tuple(size)))

  def extents(self, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes in which an image of `size` reaches the network, one for each scale."""
    own = tuple(self._preprocess.size or self._inputs.get(tuple(size), tuple(size)))
    return [self.rule.extent(self.rule.resized(own, scale)) for scale in self.rule.scales]

  def for_sizes(self, sizes: Sequence[tuple[int, int]]) -> "Segmenter":
    """The same, which resizes images of these sizes to at most eight; itself where they need not be.

    Resized and not padded: a network with global means sees padding as a part of the scene. Windows share
    their code by their grid, and a rule that resizes brings its own few sizes.
    """
    if self._preprocess.size or self.rule.resize or self.rule.mode == "slide":
      return self
    inputs = nearby_sizes(sizes)
    if all(size == to for size, to in inputs.items()):
      return self
    rule, crf = self.rule, self._crf
    return Segmenter(
      self._model, self._variables, preprocess=self._preprocess, rule=rule, crf=crf, inputs=inputs
    )

  def batches(self, sizes: Sequence[tuple[int, int]], *, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """(numbers of the images that go together, rows of their batch), those of one key after one another.

    All batches of a key have as many rows, so that it is compiled once; nine images at eight at most are
    five, and four in a batch of five.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, size in enumerate(sizes):
      groups.setdefault(self.key(size), []).append(number)
    for numbers in groups.values():
      parts = -(-len(numbers) // batch_size)
      rows = -(-len(numbers) // parts)
      for start in range(0, len(numbers), rows):
        yield numbers[start : start + rows], rows

  def labels(
    self, images: Sequence[UInt8[AnyArray, "_ _ c"]], *, count: int | None = None
  ) -> list[Int[np.ndarray, "_ _"]]:
    """The class of every pixel of images of one key, each at its own size.

    `count` is the rows of their batch, which is filled up with black images; as many as the images unless
    given.
    """
    if self._crf is not None:
      return [np.asarray(jnp.argmax(self.refined(image), -1).astype(jnp.int32)) for image in images]
    batch = self._batch(images, count)
    labels = np.asarray(self._predictor.labels(self._variables, batch))
    return [label[: image.shape[0], : image.shape[1]] for label, image in zip(labels, images, strict=False)]

  def scores(self, image: UInt8[AnyArray, "h w c"]) -> Float[np.ndarray, "h w k"]:
    """Log probabilities before the CRF."""
    batch = self._batch([image], None)
    scores = self._predictor.scores(self._variables, batch)
    return np.asarray(scores[0, : image.shape[0], : image.shape[1]])

  def probabilities(self, image: UInt8[AnyArray, "h w c"]) -> Float[np.ndarray, "h w k"]:
    """Of every class, after the CRF where there is one."""
    return np.exp(self.scores(image)) if self._crf is None else np.asarray(self.refined(image))

  def refined(self, image: UInt8[AnyArray, "h w c"]) -> Float[jax.Array, "h w k"]:
    """The CRF's probabilities."""
    return self._refine(-self.scores(image), image, self._crf["kernels"])

  def _batch(self, images, count):
    inputs = [np.asarray(published_size(image, self._preprocess)) for image in images]
    results = [tuple(image.shape[:2]) for image in images]
    if self._inputs:
      inputs = [
        _resized(image, self._inputs.get(size, size)) for image, size in zip(inputs, results, strict=True)
      ]
    sizes = [tuple(image.shape[:2]) for image in inputs]
    examples = [{"image": image} for image in inputs]
    return collate(self.rule, examples, sizes=sizes, count=count or len(images), results=results)


def nearby_sizes(
  sizes: Sequence[tuple[int, int]], *, most: int = MOST_CANVASES
) -> dict[tuple[int, int], tuple[int, int]]:
  """Each size → itself where they are at most `most`, else one of so many near to it, multiples of 32.

  Near in the logarithm of both sides: k-means from the sizes that are farthest from each other.
  """
  distinct = sorted(set(map(tuple, sizes)))
  if len(distinct) <= most:
    return {size: size for size in distinct}
  points = np.log(np.asarray(distinct, np.float64))
  centres = points[:1]
  while len(centres) < most:
    distance = np.linalg.norm(points[:, None] - centres, axis=-1).min(1)
    centres = np.concatenate([centres, points[distance.argmax()][None]])
  for _ in range(20):
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    centres = np.stack([points[nearest == i].mean(0) for i in np.unique(nearest)])
  nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
  rounded = np.maximum(np.round(np.exp(centres) / 32), 1).astype(int) * 32
  return {size: tuple(rounded[i].tolist()) for size, i in zip(distinct, nearest, strict=True)}


def _resized(image: UInt8[np.ndarray, "_ _ c"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ c"]:
  if image.shape[:2] == tuple(size):
    return image
  cv2 = lazy.load("cv2")
  smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
  how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
  resized = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=how)
  return resized.reshape(*resized.shape[:2], -1)  # OpenCV drops the only channel of a grey image


@functools.lru_cache(maxsize=8)
def _predictor(model: nn.Module, preprocess: Preprocess, rule: InferenceRule) -> Predictor:
  """One for all calls, so that each size is compiled once."""
  return Predictor(model, rule=rule, preprocess=preprocess)


def published_size(image: UInt8[AnyArray, "*b _ _ c"], preprocess: Preprocess) -> UInt8[AnyArray, "*b _ _ c"]:
  """Images at the size that the published pipeline resizes them to, where `preprocess` says so."""
  if preprocess.size is not None and tuple(preprocess.size) != image.shape[-3:-1]:
    # The published pipelines resize the 8-bit picture with Pillow: antialiased, columns first,
    # and rounded to 8 bits after each axis.
    method = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}[preprocess.resize]
    rows, columns = preprocess.size
    for size in ((image.shape[-3], columns), (rows, columns)):
      shape = (*image.shape[:-3], *size, image.shape[-1])
      resized = jax.image.resize(image.astype(jnp.float32), shape, method)
      image = jnp.clip(jnp.floor(resized + 0.5), 0, 255).astype(jnp.uint8)
  return image
