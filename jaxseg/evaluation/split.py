"""A split that is evaluated again and again: opened once, sizes known once, networks compiled ahead."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
from jax.sharding import Mesh

from jaxseg.data.pipeline import SameSize, eval_batches, group_by_size
from jaxseg.data.source import Source, known_sizes
from jaxseg.errors import UserError
from jaxseg.evaluation.canvases import check_sizes, pad_to_canvases, spread_batch
from jaxseg.evaluation.class_map import ClassMap
from jaxseg.evaluation.evaluate import evaluate
from jaxseg.evaluation.inference import PredictFn
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.evaluation.views import Grouping
from jaxseg.metrics.ratios import AbsentRule
from jaxseg.sharding import rows_to_read
from jaxseg.types import IGNORE_LABEL, Preprocess

CANVASES = ("auto", "exact")


class SplitEvaluator:
  """Scores of a model on one split.

  Args:
    model: a Linen module, or a function (variables, normalised image) → logits.
    config_data: reads name and workers.
    split: its name, for messages.
    source: the split, opened.
    rule: the test-time rule of the recipe.
    batch_size: images of all processes together; rounded up to what the mesh's devices share evenly.
    num_classes: of the confusion matrix.
    preprocess: from uint8 to the model's input.
    mesh: where to run.
    ignore_label: pixels that are not counted.
    align_corners: of the resize of logits; None takes the decoder's own.
    canvases: "auto" pads the images of inexact evaluations to at most eight input sizes, where the split has
      more; "exact" never does.
    details: whether all of `jaxseg.evaluation.counts` is counted, or the confusion matrix alone.
    absent: which classes a mean leaves out (`jaxseg.metrics.mean_over_classes`).
    class_map: where the model has other classes than the labels, see `evaluate`.

  Raises:
    UserError: an image that cannot go through a network by the rule, with its name; another `canvases`.
  """

  def __init__(
    self,
    model: nn.Module | PredictFn,
    config_data: Any,
    split: str,
    *,
    source: Source,
    rule: InferenceRule,
    batch_size: int,
    num_classes: int,
    preprocess: Preprocess,
    mesh: Mesh,
    ignore_label: int = IGNORE_LABEL,
    align_corners: bool | None = None,
    canvases: Literal["auto", "exact"] | str = "auto",
    details: bool = False,
    absent: AbsentRule | str = "mmsegmentation",
    class_map: ClassMap | None = None,
  ):
    if canvases not in CANVASES:
      raise UserError(f"config.eval.canvases is {canvases!r}; expected 'auto' or 'exact'")
    self._model, self._data, self._split = model, config_data, split
    self.source, self.rule = source, rule
    self._batch_size, self._mesh = spread_batch(batch_size, mesh), mesh
    self._settings = dict(
      num_classes=num_classes,
      preprocess=preprocess,
      mesh=mesh,
      ignore_label=ignore_label,
      align_corners=align_corners,
      details=details,
      class_map=class_map,
    )
    self._absent = absent
    sizes = known_sizes(source)
    try:
      check_sizes(rule, sizes, split=split)
    except UserError:
      # Names are read for the message only.
      check_sizes(rule, sizes, names=_Names(source), split=split)
      raise
    self.padded_rule = pad_to_canvases(rule, sizes) if canvases == "auto" else rule

  def __call__(
    self,
    variables: Mapping[str, Any],
    *,
    exact: bool = True,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
  ) -> Report:
    """From one integer confusion matrix over the whole split.

    Args:
      variables: the model's.
      exact: by the rule itself; False pads to a few canvases where `canvases` is "auto".
      progress: called with the number of images so far, of this process.
      say: called with "compiling 3 of 7 input sizes" when a batch waits for that.
    """
    rule = self.rule if exact else self.padded_rule
    grouping = None if rule.plain else Grouping(rule)
    groups = group_by_size(self.source, self._batch_size, grouping or SameSize())
    keys = list(dict.fromkeys(rule.key(members[0][1]) for members in groups))

    def waiting(number: int, count: int) -> None:
      if say is not None:
        say(f"compiling {number} of {count} input sizes")

    def compile_ahead(step: Any, variables: Mapping[str, Any]) -> None:
      step.compile_ahead(variables, keys, self._batch_size, waiting=waiting)

    report = evaluate(
      self._model,
      variables,
      eval_batches(
        self._data,
        self._split,
        batch_size=self._batch_size,
        rows=rows_to_read(self._batch_size, self._mesh),
        grouping=grouping,
        source=self.source,
      ),
      rule=rule,
      members=[[index for index, _ in group] for group in groups],
      progress=progress,
      compile_ahead=compile_ahead,
      **self._settings,
    )
    canvases = len(keys) if rule.canvas_sides else 0
    return dataclasses.replace(report, canvases=canvases, absent=self._absent)


class _Names:
  """Names of a source's images, each read when it is asked for."""

  def __init__(self, source: Source):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> str:
    return str(self._source[index].get("id", index))
