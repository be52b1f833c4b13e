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
from jaxseg.data.source import Source
from jaxseg.errors import UserError
from jaxseg.evaluation.class_map import ClassMap, mapped, mapped_terms
from jaxseg.evaluation.counts import Sums, Terms, count_all, terms_of_logits
from jaxseg.evaluation.inference import PredictFn, forward
from jaxseg.evaluation.predictor import Predictor
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.layers.resize import resize_logits
from jaxseg.types import IGNORE_LABEL, AnyArray, Preprocess

_BUCKET = 64  # pixels, to a multiple of which counts are made
# A picture → its logits (or log probabilities), at any resolution.
Scores = Callable[[UInt8[AnyArray, "h w c"]], Float[AnyArray, "_ _ k"]]


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

  def __init__(
    self,
    scores: Scores,
    settings: Settings,
    *,
    align_corners: bool = False,
    class_map: ClassMap | None = None,
  ):
    """`align_corners` is the rule of the resize from the scores' resolution to the picture's.

    With a `class_map`, whose classes without a pair the scores never predict, `labels` and the evaluation
    are in the data's classes.
    """
    self.class_map = class_map
    self._scores, self._kernels, self._align_corners = scores, settings.kernels, align_corners
    self._refine = Refiner(steps=settings.steps, method=settings.method)

  def __call__(self, image: UInt8[AnyArray, "h w c"]) -> tuple[Float[Array, "h w k"], Float[Array, "h w k"]]:
    """(the network's negative log probabilities, the CRF's probabilities), at the picture's size."""
    unary = unary_of(self._scores(image), image.shape[:2], align_corners=self._align_corners)
    return unary, self._refine(unary, image, self._kernels)

  def labels(self, image: UInt8[AnyArray, "h w c"]) -> Int[np.ndarray, "h w"]:
    """The class of every pixel."""
    return np.asarray(mapped(np.argmax(np.asarray(self(image)[1]), axis=-1), self.class_map)).astype(np.int32)


def evaluate_refined(
  network: RefinedNetwork,
  examples: Source,
  *,
  num_classes: int,
  ignore_label: int = IGNORE_LABEL,
  details: bool = False,
  progress: Callable[[int], None] | None = None,
) -> tuple[Report, Report]:
  """Scores of a split after the CRF, and those of the network alone; both from exact counts.

  With several processes each takes every n-th example, and both reports hold the sum over all.

  Args:
    network: with its CRF.
    examples: of any sizes.
    num_classes: classes of the matrix.
    ignore_label: pixels with this label are not counted.
    details: whether everything is counted, or the confusion matrix alone; with several processes the images
      are those of this one.
    progress: called with the number of images that this process has done.

  Raises:
    UserError: there are no examples, an image is not of its label's size, and as `mean_field`.
  """
  if len(examples) == 0:
    raise UserError("there are no images to evaluate; check the split and its folder")
  sums = (Sums(num_classes), Sums(num_classes))
  mine = range(jax.process_index(), len(examples), jax.process_count())
  terms_of = terms_of_logits if network.class_map is None else mapped_terms(network.class_map)

  @partial(jax.jit, static_argnames="size")
  def count(log_probs, label, size):
    terms = Terms(*terms_of(log_probs[None], label[None])[0])
    # Padded to a round size: every size of picture would compile the counts.
    pad = [(0, 0), *((0, -side % _BUCKET) for side in size)]
    terms = Terms(*(jnp.pad(x, pad) for x in terms))
    return terms, jnp.pad(label[None], pad, constant_values=ignore_label)

  counts_of = jax.jit(partial(count_all, num_classes=num_classes, ignore_label=ignore_label))
  for done, index in enumerate(mine, start=1):
    example = examples[index]
    image, label = np.asarray(example["image"]), np.asarray(example["label"])
    if image.shape[:2] != label.shape:
      raise UserError(f"label has shape {label.shape}; expected the size of the image, {image.shape[:2]}")
    unary, refined = network(image)
    tiny = np.finfo(np.float32).tiny
    for total, log_probs in zip(sums, (jnp.log(jnp.maximum(refined, tiny)), -unary), strict=True):
      terms, padded = count(log_probs, label.astype(np.int32), label.shape)
      counts = counts_of(terms, padded, sizes=np.array([label.shape], np.int32))
      total.add(jax.device_get(counts), [(index, str(example.get("id", "")))])
    if progress is not None:
      progress(done)
  if jax.process_count() > 1:
    for total in sums:
      total.add_up(_sum_over_processes)
  return tuple(Report(s.matrix, details=s.details() if details else None) for s in sums)


def _sum_over_processes(array: np.ndarray) -> np.ndarray:
  # As pairs of int32: JAX has no int64 unless asked.
  every = multihost_utils.process_allgather(jnp.asarray(np.ascontiguousarray(array).view(np.int32)))
  return np.ascontiguousarray(every).view(np.int64).sum(0)
