"""Exact evaluation of a split: integer counts of every labelled pixel, of which scores are ratios."""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxseg.classes import label_type
from jaxseg.errors import UserError
from jaxseg.evaluation.ahead import AheadOfTime, Waiting, shapes_on_mesh
from jaxseg.evaluation.class_map import ClassMap, mapped, mapped_terms, never_predicting
from jaxseg.evaluation.counts import Counts, Sums, Terms, confusion_counts, count_all, terms_for
from jaxseg.evaluation.decision import threshold_of
from jaxseg.evaluation.inference import PredictFn, forward, label_map
from jaxseg.evaluation.predictor import Predictor
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.layers.upsampled import map_upsampled
from jaxseg.models import align_corners_of
from jaxseg.sharding import groups_of_process, on_mesh, replicated, to_global
from jaxseg.types import IGNORE_LABEL, Batch, Preprocess


@runtime_checkable
class EvalStep(Protocol):
  """(variables, batch) → confusion matrix, or `Counts`; `compile_ahead` as in `Predictor`."""

  def __call__(self, variables: Mapping[str, Any], batch: Batch) -> Any: ...
  def compile_ahead(
    self,
    variables: Mapping[str, Any],
    keys: Sequence[tuple[tuple[int, int], ...]],
    batch_size: int,
    *,
    waiting: Waiting | None = None,
  ) -> None: ...


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
  details: bool = False,
  class_map: ClassMap | None = None,
) -> EvalStep:
  """(variables, {"image" uint8, "label"}) → confusion matrix int32 [truth, prediction], compiled.

  Labels keep their own resolution, to which the logits are brought. Under a mesh the batch
  is spread over it and the matrix is the sum over all of it. With `details` the step gives all
  `Counts` instead. The rest is as in `evaluate`.
  """
  if class_map is not None:
    align_corners = align_corners_of(model, given=align_corners)
    model = never_predicting(model, class_map)
  if not rule.plain:
    predictor = Predictor(
      model,
      rule=rule,
      preprocess=preprocess,
      mesh=mesh,
      align_corners=align_corners,
      class_map=class_map,
    )
    return _RuleStep(predictor, num_classes, ignore_label, mesh, details)
  threshold = threshold_of(model, rule.threshold)
  return _PlainStep(
    model, num_classes, preprocess, mesh, ignore_label, align_corners, details, class_map, threshold
  )


class _RuleStep:
  """An `EvalStep` of a rule that is not plain."""

  def __init__(
    self, predictor: Predictor, num_classes: int, ignore_label: int, mesh: Mesh | None, details: bool
  ):
    self._count, self._mesh = predictor.count_all if details else predictor.count, mesh
    self._num_classes, self._ignore_label = num_classes, ignore_label
    self.compile_ahead = predictor.compile_ahead

  def __call__(self, variables: Mapping[str, Any], batch: Batch) -> Any:
    batch = _filled(batch, self._mesh, self._ignore_label)
    return self._count(variables, batch, num_classes=self._num_classes, ignore_label=self._ignore_label)


class _PlainStep:
  """An `EvalStep` of images as they are."""

  def __init__(
    self, model, num_classes, preprocess, mesh, ignore_label, align_corners, details, class_map, threshold
  ):
    apply, corners = forward(model), align_corners_of(model, given=align_corners)
    self._mesh, self._ignore_label, self._channels = mesh, ignore_label, preprocess.channels
    self._label_type = np.uint8 if threshold is None else label_type(num_classes)
    settings = dict(num_classes=num_classes, ignore_label=ignore_label, multi_label=threshold is not None)

    def count(variables, batch):
      labels = jnp.asarray(batch["label"])
      outputs = apply(variables, preprocess(jnp.asarray(batch["image"])))
      if details:
        terms_of = terms_for(threshold) if class_map is None else mapped_terms(class_map)
        return count_all(_terms(outputs, labels, corners, terms_of), labels, **settings)
      pred = label_map(outputs, labels.shape[1:3], align_corners=corners, threshold=threshold)
      return confusion_counts(mapped(pred, class_map), labels, **settings)

    # All comes as it is laid out already: variables split over fsdp or whole, the batch by `to_global`.
    options = {} if mesh is None else {"out_shardings": replicated(mesh)}
    self._count = AheadOfTime(jax.jit(count, **options), mesh=mesh)

  def __call__(self, variables: Mapping[str, Any], batch: Batch) -> Any:
    if "image" not in batch:
      raise UserError(
        f"a batch has {sorted(batch)} and no image; under a plain rule batches are made without a Grouping"
      )
    pixels = {name: batch[name] for name in ("image", "label")}
    if self._mesh is None:
      return self._count(variables, pixels)
    with jax.set_mesh(self._mesh):
      return self._count(variables, to_global(_filled(pixels, self._mesh, self._ignore_label), self._mesh))

  def compile_ahead(
    self,
    variables: Mapping[str, Any],
    keys: Sequence[tuple[tuple[int, int], ...]],
    batch_size: int,
    *,
    waiting: Waiting | None = None,
  ) -> None:
    """Starts to compile the network for uint8 batches of these sizes."""
    calls = []
    for (size,) in dict.fromkeys(keys):
      batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *size, self._channels), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, *size), self._label_type),
      }
      calls.append((variables, batch if self._mesh is None else shapes_on_mesh(batch, self._mesh)))
    self._count.waiting = waiting
    self._count.compile_ahead(calls)


def _terms(outputs: Any, labels: jax.Array, align_corners: bool, terms_of: Callable[..., Any]) -> Terms:
  """Of a model's outputs; the map of all classes at the labels' size is never held."""
  logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
  size = labels.shape[1:3]
  if logits.ndim == 3:
    return Terms(label_map(logits, size))
  labels, logits = labels.astype(jnp.int32), jnp.asarray(logits)
  if tuple(logits.shape[1:3]) == tuple(size):
    return Terms(*terms_of(logits.astype(jnp.float32), labels)[0])
  return Terms(*map_upsampled(terms_of, logits, (labels,), align_corners=align_corners)[0])


def _filled(batch: Batch, mesh: Mesh | None, ignore_label: int) -> Batch:
  """`batch` with its last row repeated, without a label, until the device groups share it evenly."""
  rows = len(batch["label"])
  missing = -rows % len(groups_of_process(mesh)) if mesh is not None and rows else 0
  if not missing:
    return batch
  filled = {name: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for name, x in batch.items()}
  filled["label"][rows:] = ignore_label
  return filled


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
  details: bool = False,
  class_map: ClassMap | None = None,
  members: Sequence[Sequence[int]] | None = None,
  progress: Callable[[int], None] | None = None,
  compile_ahead: Callable[[EvalStep, Mapping[str, Any]], None] | None = None,
) -> Report:
  """Scores over all of `batches`, from integer counts: no batch is dropped, no image counted twice.

  Args:
    model: a Linen module, or a function (variables, normalised image) → logits or label map.
    variables: the model's.
    batches: {"image": uint8 b h w 3, "label": b h w, "id"}; a batch is filled up with images
      whose label is all `ignore_label`. With several processes, each gives the rows that
      `jaxseg.sharding.rows_to_read` says; one process may give any number. Or
      batches that `Grouping(rule)` made, in which pictures may differ in size.
    num_classes: classes of the matrix.
    preprocess: from uint8 to the model's input, applied on the device.
    mesh: where to run; None for the default device.
    ignore_label: pixels with this label are not counted.
    align_corners: of the resize from the decoder's resolution to the label's; None takes the decoder's own.
    rule: how a picture reaches the network and comes back.
    details: whether boundaries, calibration, loss and each image are counted, too (`Report.details`).
    class_map: for each class of the model its class of the labels or -1 (`make_class_map`); None where they
      are the same.
    members: numbers of the images of each batch of all processes, for `Report.details.images`; None counts
      the rows that this process gives.
    progress: called with the number of images so far (of this process, fillers not counted).
    compile_ahead: called with the step and the variables before the first batch, for whoever knows the
      sizes to come (`EvalStep.compile_ahead`).

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
    details=details,
    class_map=class_map,
  )
  if mesh is not None:
    variables = on_mesh(variables, mesh)
  if compile_ahead is not None:
    compile_ahead(step, variables)
  sums = Sums(num_classes, multi_label=threshold_of(model, rule.threshold) is not None)
  pending, images = None, 0
  for number, batch in enumerate(batches):
    counts = step(variables, batch)
    names = _members(batch, ignore_label, images) if members is None else _named(batch, members[number])
    # The previous batch is fetched while this one is computed.
    if pending is not None:
      _add(sums, *pending)
    pending = counts, names
    images += _images(batch, ignore_label)
    if progress is not None:
      progress(images)
  if pending is None:
    raise UserError("there are no batches to evaluate; check the split and its folder")
  _add(sums, *pending)
  return Report(sums.matrix, details=sums.details() if details else None)


def _add(sums: Sums, counts: Any, members: Sequence[tuple[int, str]]) -> None:
  if isinstance(counts, Counts):
    sums.add(jax.device_get(counts), members)
  else:
    sums.matrix += np.asarray(counts, np.int64)


def _members(batch: Batch, ignore_label: int, first: int) -> list[tuple[int, str]]:
  """(number, name) of the rows of a batch that one process made; fillers are its last rows."""
  count = _images(batch, ignore_label) if "id" in batch else len(batch["label"])
  names = [str(name) for name in batch["id"]] if "id" in batch else [""] * count
  return [(first + row, names[row]) for row in range(count)]


def _named(batch: Batch, indices: Sequence[int]) -> list[tuple[int, str]]:
  """The names are those of this process's rows: of all of them where it is the only one."""
  names = [str(name) for name in batch["id"]] if "id" in batch and jax.process_count() == 1 else []
  return [(index, names[row] if row < len(names) else "") for row, index in enumerate(indices)]


@functools.lru_cache(maxsize=4)
def _cached_eval_step(model: Any, **settings: Any) -> EvalStep:
  """Evaluations in the course of a training run share one compiled step."""
  return make_eval_step(model, **settings)


def _images(batch: Batch, ignore_label: int) -> int:
  if "id" in batch:
    return sum(1 for name in batch["id"] if str(name))
  return int(np.any(np.asarray(batch["label"]) != ignore_label, axis=(1, 2)).sum())
