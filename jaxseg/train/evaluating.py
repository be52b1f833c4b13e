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
from jaxseg.console import print_line
from jaxseg.crf import Settings
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.evaluation.canvases import pad_to_canvases
from jaxseg.evaluation.panel import panel
from jaxseg.evaluation.predictor import make_predict
from jaxseg.evaluation.refined import RefinedNetwork, make_scores
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.models import align_corners_of
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
    source: Source | None = None,
  ):
    self._model, self._config, self._info = model, config, info
    self._source = source
    self._preprocess, self._mesh = preprocess, mesh
    self._rule = make_inference_rule(config.eval)
    self._predict: dict[InferenceRule, Callable] = {}
    self._split = None

  @property
  def source(self) -> Source:
    """The evaluation split, opened once: by whoever made this, or at the first call."""
    if self._source is None:
      self._source = data.open_split(self._config.data, self._config.data.eval_split)
    return self._source

  @property
  def split(self) -> Any:
    """The `SplitEvaluator` behind this; making it looks at the size of every image.

    Raises:
      UserError: an image that the network cannot take, with its name.
    """
    if self._split is None:
      from jaxseg.evaluation.split import SplitEvaluator  # brings Grain

      config = self._config
      self._split = SplitEvaluator(
        self._model,
        config.data,
        config.data.eval_split,
        source=self.source,
        rule=self._rule,
        batch_size=config.eval.batch_size,
        num_classes=self._info.num_classes,
        preprocess=self._preprocess,
        mesh=self._mesh,
        ignore_label=config.loss.ignore_label,
        align_corners=config.loss.align_corners,
        canvases=config.eval.get("canvases", "auto"),
        details=config.eval.get("details", True),
        absent=config.eval.get("absent_classes", "mmsegmentation"),
      )
    return self._split

  def __call__(
    self, variables: Any, *, exact: bool = True, progress: Any = None, say: Callable[[str], None] = print_line
  ) -> Report:
    """From one integer confusion matrix over the whole split.

    `exact=False`, for evaluations in the course of training, pads to a few canvases where
    `config.eval.canvases` is "auto"; `report.note` says so.
    """
    return self.split(variables, exact=exact, progress=progress, say=say)

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
    """Image | label | prediction, of `config.log.panel_images` images spread over the split.

    Images of different sizes are padded to one canvas, so that one prediction is compiled for all of them.
    Every process of a job has to call it, since they compute the prediction together; `predict`, a
    picture's label map by other means, is called by each for itself.
    """
    source = self.source
    count = max(1, self._config.log.panel_images)
    # Neighbours are often frames of one film.
    spread = dict.fromkeys(int(i) for i in np.linspace(0, len(source) - 1, count))
    examples = [source[i] for i in spread]
    images = [example["image"] for example in examples]
    labels = [example["label"].astype(np.int32) for example in examples]
    if predict is None:
      rule = pad_to_canvases(self._rule, [image.shape[:2] for image in images], most=1)
      if rule not in self._predict:
        self._predict[rule] = make_predict(
          self._model,
          preprocess=self._preprocess,
          rule=rule,
          mesh=self._mesh,
          align_corners=self._config.loss.align_corners,
        )
      run = self._predict[rule]
      predict = lambda image: np.asarray(run(variables, image[None]))[0]  # noqa: E731
    predictions = [predict(image) for image in images]
    return panel(images, labels, predictions, self._info.palette, self._info.classes)
