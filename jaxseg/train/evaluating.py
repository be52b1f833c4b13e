"""Evaluation as a run does it: config → exact report, and a picture of the first images."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8
from tqdm import tqdm

from jaxseg import data, lazy
from jaxseg.checkpoint import restore_variables
from jaxseg.console import print_line as say
from jaxseg.crf import Settings
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.errors import UserError
from jaxseg.evaluation.classify import ClassificationReport
from jaxseg.evaluation.evaluate import evaluate
from jaxseg.evaluation.panel import panel
from jaxseg.evaluation.predictor import make_predict
from jaxseg.evaluation.refined import RefinedNetwork, evaluate_refined, make_scores
from jaxseg.evaluation.report import Report
from jaxseg.evaluation.views import Grouping
from jaxseg.models import align_corners_of
from jaxseg.sharding import rows_to_read
from jaxseg.train import best, tasks, validate, workdir
from jaxseg.train import config as config_lib
from jaxseg.train.experiment import make_mesh
from jaxseg.train.rule import make_inference_rule
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
    self._predict = None

  @property
  def source(self) -> Source:
    """The evaluation split, opened once: by whoever made this, or at the first call."""
    if self._source is None:
      self._source = data.open_split(self._config.data, self._config.data.eval_split)
    return self._source

  def __call__(self, variables: Any, *, progress: Any = None) -> Report:
    """From one integer confusion matrix over the whole split."""
    batches = data.eval_batches(
      self._config.data,
      self._config.data.eval_split,
      batch_size=self._config.eval.batch_size,
      rows=rows_to_read(self._config.eval.batch_size, self._mesh),
      grouping=None if self._rule.plain else Grouping(self._rule),
      source=self.source,
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
    source = self.source
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


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is evaluated: a model with its variables and its own idea of the input."""

  name: str
  model: nn.Module
  variables: Any
  preprocess: Preprocess
  num_classes: int
  step: int | str | None = None


def from_workdir(directory: epath.PathLike, *, step: str = "best") -> Subject:
  """The model of a run of train.py, at a checkpoint: "best", "latest" or a number.

  Raises:
    UserError: no workdir, or no such checkpoint.
  """
  if step not in ("best", "latest") and not step.isdigit():
    raise UserError(f"--step is {step!r}; expected best, latest or a number")
  wanted = int(step) if step.isdigit() else step
  config = workdir.read_config(directory)
  return Subject(
    name=str(directory),
    model=config_lib.build_model(config, config.model.num_classes),
    variables=best.read(directory)
    if wanted == "best"
    else restore_variables(epath.Path(directory) / workdir.CHECKPOINTS, step=wanted),
    preprocess=config_lib.make_preprocess(config.preprocess),
    num_classes=config.model.num_classes,
    step=wanted,
  )


def from_source(source: str) -> Subject:
  """Weights that `jaxseg.from_pretrained` reads.

  Raises:
    UserError: it cannot be read.
  """
  from jaxseg import hub

  net = hub.from_pretrained(source)
  num_classes = getattr(getattr(net.model, "decoder", net.model), "num_classes", None)
  if num_classes is None:
    raise UserError(f"{source} holds {net.arch} without a classifier; give weights that have one")
  return Subject(source, net.model, net.variables, net.preprocess, num_classes)


def run(
  subject: Subject,
  config: ml_collections.ConfigDict,
  *,
  output: epath.PathLike,
  crf: Settings | None = None,
) -> Report | ClassificationReport:
  """Evaluates on `config`'s data, prints the table, writes `report.json` and `panel.png` to `output`.

  With `crf` the report is of the refined result, and also says what the network alone scores.

  Raises:
    UserError: the data cannot be read, or has other classes than the model.
  """
  mesh = make_mesh(config.mesh)
  validate.validate_batches(config, mesh, keys=("eval.batch_size",))
  info = data.dataset_info(config.data)
  if info.num_classes != subject.num_classes:
    raise UserError(
      f"{subject.name} has {subject.num_classes} classes, but {config.data.name} has {info.num_classes};"
      " choose the data that it was trained for"
    )
  if tasks.name_of(config) == "classification":
    if crf is not None:
      raise UserError("an image classifier has no CRF behind it; leave out --crf and config.eval.crf")
    evaluate_images = lazy.load("jaxseg.train.classification").evaluate
    return evaluate_images(subject, config, output=output, info=info, mesh=mesh)
  evaluator = Evaluator(subject.model, config, info=info, preprocess=subject.preprocess, mesh=mesh)
  count = len(evaluator.source)
  first = jax.process_index() == 0
  refined = None if crf is None else evaluator.refined(subject.variables, crf)
  with tqdm(total=count, unit="image", disable=None if first else True) as bar:
    progress = lambda images: bar.update(images - bar.n)  # noqa: E731
    if refined is None:
      report, alone = evaluator(subject.variables, progress=progress), None
    else:
      report, alone = evaluate_refined(
        refined,
        evaluator.source,
        num_classes=info.num_classes,
        ignore_label=config.loss.ignore_label,
        progress=progress,
      )
  picture = evaluator.panel(subject.variables, predict=refined and refined.labels)
  if first:
    facts = {
      "source": subject.name,
      "step": subject.step,
      "data": config.data.name,
      "split": config.data.eval_split,
      "images": count,
      "rule": make_inference_rule(config.eval).text(),
    }
    if crf is not None:
      facts |= {"crf": dataclasses.asdict(crf), "without_crf": alone.scalars()}
    write_report(output, report, picture, info=info, facts=facts)
    say(report.table(info.classes))
    if crf is not None:
      say(f"all with the CRF; the network alone has mIoU {alone.miou:.4f}")
    say(f"{count} images of {config.data.name} {config.data.eval_split}, {facts['rule']}")
    say(f"report and picture in {output}")
  return report


def write_report(
  directory: epath.PathLike,
  report: Report,
  picture: UInt8[np.ndarray, "_ _ 3"],
  *,
  info: DatasetInfo,
  facts: dict[str, Any],
) -> None:
  """`report.json` (scores, per-class table, matrix, and `facts` about what was evaluated) and `panel.png`."""
  import cv2

  directory = epath.Path(directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, **report.to_dict(info.classes)}, indent=1)
    (directory / "report.json").write_text(text + "\n")
    png = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1]
    (directory / "panel.png").write_bytes(png.tobytes())
  except OSError as error:
    raise UserError(
      f"{str(directory)!r} cannot be written ({error.strerror or error}); choose another --output"
    ) from None
