"""Evaluation as a run does it: a model's exact scores, and a picture of the first images."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from jaxseg import data
from jaxseg.config.rule import make_inference_rule
from jaxseg.crf import Settings
from jaxseg.data.source import DatasetInfo
from jaxseg.evaluation.evaluate import evaluate
from jaxseg.evaluation.panel import panel
from jaxseg.evaluation.predictor import make_predict
from jaxseg.evaluation.refined import RefinedNetwork, make_scores
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.views import Grouping
from jaxseg.models import align_corners_of
from jaxseg.sharding import rows_to_read
from jaxseg.types import Preprocess


class Evaluator:
  """A model's scores on `config.data.eval_split`; compiled once, called with the variables of the moment."""

  def __init__(
    self,
    model: nn.Module,
    config: ml_collections.ConfigDict,
    *,
    info: DatasetInfo,
    preprocess: Preprocess,
    mesh: Mesh,
  ):
    self._model, self._config, self._info = model, config, info
    self._preprocess, self._mesh = preprocess, mesh
    self._rule = make_inference_rule(config.eval)
    self._predict = None

  def __call__(self, variables: Any, *, progress: Any = None) -> Report:
    """From one integer confusion matrix over the whole split."""
    batches = data.eval_batches(
      self._config.data,
      self._config.data.eval_split,
      batch_size=self._config.eval.batch_size,
      rows=rows_to_read(self._config.eval.batch_size, self._mesh),
      grouping=None if self._rule.plain else Grouping(self._rule),
    )
    return evaluate(
      self._model,
      variables,
      batches,
      num_classes=self._info.num_classes,
      preprocess=self._preprocess,
      mesh=self._mesh,
      ignore_label=self._config.loss.ignore_label,
      align_corners=self._config.loss.align_corners,
      rule=self._rule,
      progress=progress,
    )

  def refined(self, variables: Any, crf: Settings) -> RefinedNetwork:
    """The network with a CRF behind it, for one picture after the other on this process's first device."""
    corners = align_corners_of(self._model, given=self._config.loss.align_corners)
    scores = make_scores(
      self._model, variables, preprocess=self._preprocess, rule=self._rule, align_corners=corners
    )
    return RefinedNetwork(scores, crf, align_corners=corners)

  def panel(
    self, variables: Any, *, predict: Callable[[np.ndarray], np.ndarray] | None = None
  ) -> UInt8[np.ndarray, "_ _ 3"]:
    """Image | label | prediction, of images spread over the split that have the size of its first one.

    Every process of a job has to call it, since they compute the prediction together; `predict`, a
    picture's label map by other means, is called by each for itself.
    """
    source = data.open_split(self._config.data, self._config.data.eval_split)
    count = max(1, self._config.log.panel_images)
    # Neighbours are often frames of one film; images of one size share one compiled prediction.
    spread = dict.fromkeys(int(i) for i in np.linspace(0, len(source) - 1, count))
    examples = [source[i] for i in spread if source.size(i) == source.size(0)]
    images = np.stack([example["image"] for example in examples])
    labels = np.stack([example["label"] for example in examples]).astype(np.int32)
    if predict is not None:
      predictions = np.stack([predict(image) for image in images])
      return panel(images, labels, predictions, self._info.palette, self._info.classes)
    if self._predict is None:
      self._predict = make_predict(
        self._model,
        preprocess=self._preprocess,
        rule=self._rule,
        mesh=self._mesh,
        align_corners=self._config.loss.align_corners,
      )
    predictions = np.asarray(self._predict(variables, images))
    return panel(images, labels, predictions, self._info.palette, self._info.classes)
