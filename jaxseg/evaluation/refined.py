"""Evaluation with the CRF behind the network, one image after the other, each at its own size."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, UInt8

from jaxseg.crf import Refiner, Settings
from jaxseg.crf.search import count
from jaxseg.data.source import Source
from jaxseg.errors import UserError
from jaxseg.evaluation.inference import PredictFn, forward
from jaxseg.evaluation.predictor import Predictor
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.layers.resize import resize_logits
from jaxseg.types import IGNORE_LABEL, AnyArray, Preprocess

# A picture → its logits (or log probabilities), at any resolution.
Scores = Callable[[UInt8[AnyArray, "h w 3"]], Float[AnyArray, "_ _ k"]]


def make_scores(
  model: nn.Module | PredictFn,
  variables: Mapping[str, Any],
  *,
  preprocess: Preprocess,
  rule: InferenceRule | None = None,
  align_corners: bool | None = None,
) -> Scores:
  """The network on one picture after the other, on the default device; compiled once for each size.

  Without a rule, or with the plain one, the logits stay at the decoder's resolution; otherwise they
  are log probabilities at the picture's size.

  Args:
    model: a Linen module, or a function (variables, normalised image) → outputs or logits.
    variables: the model's.
    preprocess: from uint8 to the model's input.
    rule: how a picture reaches the network.
    align_corners: of the resizes that the rule needs; None takes the decoder's own.
  """
  variables = jax.device_put(variables)
  if rule is not None and not rule.plain:
    predictor = Predictor(model, rule=rule, preprocess=preprocess, align_corners=align_corners)

    def by_rule(image):
      image = np.asarray(image)
      return predictor.scores(variables, {"image": image[None]})[0, : image.shape[0], : image.shape[1]]

    return by_rule
  apply = forward(model)

  @jax.jit
  def logits(variables, image):
    outputs = apply(variables, preprocess(image)[None])
    return (outputs["logits"] if isinstance(outputs, Mapping) else outputs)[0]

  return lambda image: logits(variables, jnp.asarray(image))


@partial(jax.jit, static_argnames=("size", "align_corners"))
def unary_of(
  scores: Float[AnyArray, "_ _ k"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "h w k"]:
  """Negative log probabilities at `size` (rows, columns), from logits at the network's resolution."""
  return -jax.nn.log_softmax(resize_logits(scores, size, align_corners=align_corners), axis=-1)


class RefinedNetwork:
  """A network with the CRF behind it, for one picture after the other, of any sizes."""

  def __init__(self, scores: Scores, settings: Settings, *, align_corners: bool = False):
    """`align_corners` is the rule of the resize from the scores' resolution to the picture's."""
    self._scores, self._kernels, self._align_corners = scores, settings.kernels, align_corners
    self._refine = Refiner(steps=settings.steps, method=settings.method)

  def __call__(self, image: UInt8[AnyArray, "h w 3"]) -> tuple[Float[Array, "h w k"], Float[Array, "h w k"]]:
    """(the network's negative log probabilities, the CRF's probabilities), at the picture's size."""
    unary = unary_of(self._scores(image), image.shape[:2], align_corners=self._align_corners)
    return unary, self._refine(unary, image, self._kernels)

  def labels(self, image: UInt8[AnyArray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """The class of every pixel."""
    return np.argmax(np.asarray(self(image)[1]), axis=-1).astype(np.int32)


def evaluate_refined(
  network: RefinedNetwork,
  examples: Source,
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
  progress: Callable[[int], None] | None = None,
) -> tuple[Report, Report]:
  """Scores of a split after the CRF, and those of the network alone; both from exact counts.

  With several processes each takes every n-th example, and both reports hold the sum over all.

  Args:
    network: with its CRF.
    examples: of any sizes.
    num_classes: classes of the matrix.
    ignore_label: pixels with this label are not counted.
    progress: called with the number of images that this process has done.

  Raises:
    UserError: there are no examples, an image is not of its label's size, and as `mean_field`.
  """
  if len(examples) == 0:
    raise UserError("there are no images to evaluate; check the split and its folder")
  matrices = np.zeros((2, num_classes, num_classes), np.int64)
  mine = range(jax.process_index(), len(examples), jax.process_count())
  for done, index in enumerate(mine, start=1):
    example = examples[index]
    unary, refined = network(np.asarray(example["image"]))
    for matrix, scores in zip(matrices, (refined, -unary), strict=True):
      matrix += count(scores, np.asarray(example["label"]), ignore_label=ignore_label)
    if progress is not None:
      progress(done)
  if jax.process_count() > 1:
    # As pairs of int32: JAX has no int64 unless asked.
    every = multihost_utils.process_allgather(jnp.asarray(matrices.view(np.int32)))
    matrices = np.ascontiguousarray(every).view(np.int64).sum(0)
  return Report(matrices[0]), Report(matrices[1])
