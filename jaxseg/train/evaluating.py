"""Evaluation as a run does it: a model's exact scores, and a picture of the first images."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from jaxseg import data
from jaxseg.config.rule import make_inference_rule
from jaxseg.console import print_line
from jaxseg.crf import Settings
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.errors import UserError
from jaxseg.evaluation.canvases import pad_to_canvases
from jaxseg.evaluation.class_map import make_class_map, never_predicting
from jaxseg.evaluation.inference import PredictFn
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
    num_classes: int | None = None,
  ):
    """`num_classes` are the model's, where `config.eval.class_map` brings them to others of the data."""
    self._config, self._info = config, info
    self._source = source
    self._corners = align_corners_of(model, given=config.loss.align_corners)
    self._class_map = None
    self._model = model
    self._restricted: nn.Module | PredictFn = model
    if config.eval.get("class_map", ()):
      self._class_map = make_class_map(
        config.eval.class_map, num_model=num_classes or info.num_classes, num_data=info.num_classes
      )
      self._restricted = never_predicting(model, self._class_map)
    self._preprocess, self._mesh = preprocess, mesh
    self._rule = make_inference_rule(config.eval)
    self._predict: dict[InferenceRule, Callable] = {}
    self._split = None

  @property
  def info(self) -> DatasetInfo:
    """Of the data."""
    return self._info

  @property
  def model(self) -> nn.Module:
    """What is evaluated."""
    return self._model

  @property
  def ignore_label(self) -> int:
    """The label that is not counted."""
    return self._config.loss.ignore_label

  @property
  def report_images(self) -> int:
    """How many images a report shows."""
    return self._config.eval.get("report_images", 12)

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
        align_corners=self._corners,
        class_map=self._class_map,
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
    """The network with a CRF behind it, for one picture after the other on this process's first device.

    Raises:
      UserError: pixels of several classes, which the CRF does not know.
    """
    if self._info.multi_label:
      raise UserError("the CRF gives each pixel one class; leave it out with data.multi_label")
    scores = make_scores(
      self._restricted, variables, preprocess=self._preprocess, rule=self._rule, align_corners=self._corners
    )
    return RefinedNetwork(scores, crf, align_corners=self._corners, class_map=self._class_map)

  def predictor(
    self, variables: Any, *, sizes: Sequence[tuple[int, int]] | None = None
  ) -> Callable[[UInt8[np.ndarray, "h w c"]], Int[np.ndarray, "h w"]]:
    """A picture → its label map in the data's classes; every process of a job has to call it together.

    With `sizes`, those of all pictures to come, they are padded to one canvas, so that one network is
    compiled for all of them; else by the rule itself.
    """
    rule = self._rule if sizes is None else pad_to_canvases(self._rule, sizes, most=1)
    if rule not in self._predict:
      self._predict[rule] = make_predict(
        self._restricted,
        preprocess=self._preprocess,
        rule=rule,
        mesh=self._mesh,
        align_corners=self._corners,
      )
    run, table = self._predict[rule], self._class_map

    def predict(image):
      label = np.asarray(run(variables, image[None]))[0]
      return label if table is None else np.asarray(table, np.int32)[label]

    return predict

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
      predict = self.predictor(variables, sizes=[image.shape[:2] for image in images])
    predictions = [predict(image) for image in images]
    drawn = self._info.drawn
    return panel(images, labels, predictions, drawn.palette, drawn.classes)
