"""Exact evaluation of a split: one integer confusion matrix over every labelled pixel."""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxseg.errors import UserError
from jaxseg.evaluation.inference import PredictFn, forward, label_map
from jaxseg.evaluation.predictor import Predictor
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.metrics import confusion_matrix
from jaxseg.models import align_corners_of
from jaxseg.sharding import on_mesh, replicated, to_global
from jaxseg.types import IGNORE_LABEL, Batch, Preprocess

EvalStep = Callable[[Mapping[str, Any], Batch], jax.Array]

# One pass over the picture as it is.
_AS_IS = InferenceRule()


def make_eval_step(
  model: nn.Module | PredictFn,
  *,
  num_classes: int,
  preprocess: Preprocess,
  mesh: Mesh | None = None,
  ignore_label: int = IGNORE_LABEL,
  align_corners: bool | None = None,
  rule: InferenceRule = _AS_IS,
) -> EvalStep:
  """(variables, {"image" uint8, "label"}) → confusion matrix int32 [truth, prediction], compiled.

  Labels keep their own resolution, to which the logits are brought. Under a mesh the batch
  is spread over it and the matrix is the sum over all of it. The rest is as in `evaluate`.
  """
  if not rule.plain:
    predictor = Predictor(model, rule=rule, preprocess=preprocess, mesh=mesh, align_corners=align_corners)
    return functools.partial(predictor.count, num_classes=num_classes, ignore_label=ignore_label)
  apply, corners = forward(model), align_corners_of(model, given=align_corners)

  def count(variables, batch):
    if "image" not in batch:
      raise UserError(
        f"a batch has {sorted(batch)} and no image; under a plain rule batches are made without a Grouping"
      )
    labels = jnp.asarray(batch["label"])
    pred = label_map(
      apply(variables, preprocess(jnp.asarray(batch["image"]))),
      labels.shape[1:3],
      align_corners=corners,
    )
    return confusion_matrix(pred, labels, num_classes=num_classes, ignore_label=ignore_label)

  if mesh is None:
    compiled = jax.jit(count)
    return lambda variables, batch: compiled(variables, {name: batch[name] for name in ("image", "label")})
  # All comes as it is laid out already: variables split over fsdp or whole, the batch by `to_global`.
  compiled = jax.jit(count, out_shardings=replicated(mesh))

  def step(variables, batch):
    with jax.set_mesh(mesh):
      return compiled(variables, to_global({name: batch[name] for name in ("image", "label")}, mesh))

  return step


def evaluate(
  model: nn.Module | PredictFn,
  variables: Mapping[str, Any],
  batches: Iterable[Batch],
  *,
  num_classes: int,
  preprocess: Preprocess,
  mesh: Mesh | None = None,
  ignore_label: int = IGNORE_LABEL,
  align_corners: bool | None = None,
  rule: InferenceRule = _AS_IS,
  progress: Callable[[int], None] | None = None,
) -> Report:
  """Scores over all of `batches`, from integer counts: no batch is dropped, no image counted twice.

  Args:
    model: a Linen module, or a function (variables, normalised image) → logits or label map.
    variables: the model's.
    batches: {"image": uint8 b h w 3, "label": b h w, "id"}; a batch is filled up with images
      whose label is all `ignore_label`. With several processes, each gives the rows that
      `jaxseg.sharding.rows_to_read` says. Or batches that `Grouping(rule)` made, in which
      pictures may differ in size.
    num_classes: classes of the matrix.
    preprocess: from uint8 to the model's input, applied on the device.
    mesh: where to run; None for the default device.
    ignore_label: pixels with this label are not counted.
    align_corners: of the resize from the decoder's resolution to the label's; None takes the decoder's own.
    rule: how a picture reaches the network and comes back.
    progress: called with the number of images so far (of this process, fillers not counted).

  Raises:
    UserError: there are no batches.
  """
  make = _cached_eval_step if isinstance(model, Hashable) else make_eval_step
  step = make(
    model,
    num_classes=num_classes,
    preprocess=preprocess,
    mesh=mesh,
    ignore_label=ignore_label,
    align_corners=align_corners,
    rule=rule,
  )
  if mesh is not None:
    variables = on_mesh(variables, mesh)
  total = np.zeros((num_classes, num_classes), np.int64)
  pending, images = None, 0
  for batch in batches:
    counts = step(variables, batch)
    # The previous batch is fetched while this one is computed.
    if pending is not None:
      total += np.asarray(pending, np.int64)
    pending = counts
    images += _images(batch, ignore_label)
    if progress is not None:
      progress(images)
  if pending is None:
    raise UserError("there are no batches to evaluate; check the split and its folder")
  return Report(total + np.asarray(pending, np.int64))


@functools.lru_cache(maxsize=4)
def _cached_eval_step(model: Any, **settings: Any) -> EvalStep:
  """Evaluations in the course of a training run share one compiled step."""
  return make_eval_step(model, **settings)


def _images(batch: Batch, ignore_label: int) -> int:
  if "id" in batch:
    return sum(1 for name in batch["id"] if str(name))
  return int(np.any(np.asarray(batch["label"]) != ignore_label, axis=(1, 2)).sum())
