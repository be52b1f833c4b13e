"""`report.html` of an evaluation: which images it shows, and what of the run stands beside the scores."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath

from jaxseg.config.rule import make_inference_rule
from jaxseg.data.source import DatasetInfo
from jaxseg.errors import UserError
from jaxseg.evaluation.page import (
  Example,
  choose_images,
  iou_picture,
  make_example,
  matrix_picture,
  render_page,
  report_values,
)
from jaxseg.evaluation.report import Report
from jaxseg.macs import count_macs
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.metrics import METRICS, read_metrics
from jaxseg.train.trackers import Tracker

FOLDER = "eval"  # in a workdir
PAGE = "report.html"
VALUES = "report.json"
COST = "cost.json"
CARD = "recipe.txt"


def write(
  workdir: epath.PathLike,
  report: Report,
  evaluator: Evaluator,
  variables: Any,
  *,
  config: ml_collections.ConfigDict,
  step: int,
) -> str:
  """`WORKDIR/eval/report.html`, `report.json` and `WORKDIR/cost.json` of a run; the sentence that says so.

  Every process of a job has to call it. A file that cannot be written is a sentence, too: it must not end a
  run that is saved.
  """
  examples = choose_examples(report, evaluator, variables)
  if jax.process_index():
    return ""
  facts = {
    "source": str(workdir),
    "step": step,
    "data": config.data.name,
    "split": config.data.eval_split,
    "images": len(evaluator.source),
    "rule": make_inference_rule(config.eval).text(),
    **size_facts(evaluator.model, variables, config),
  }
  cost = {key: facts[key] for key in ("parameters", "macs")} | _memory()
  folder = epath.Path(workdir) / FOLDER
  try:
    page = render(report, evaluator.info, facts=facts, examples=examples, workdir=workdir)
    values = json.dumps({**facts, **report.to_dict(evaluator.info.classes)}, indent=1, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in (
      (folder / VALUES, values + "\n"),
      (folder / PAGE, page),
      (epath.Path(workdir) / COST, json.dumps(cost) + "\n"),
    ):
      part = path.with_name(f"{path.name}.part")
      part.write_bytes(text.encode())
      part.replace(path)
  except (OSError, UserError) as error:
    return f"the report could not be written: {error}"
  return f"report in {folder / PAGE}"


def size_facts(model: nn.Module, variables: Any, config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Parameters and MACs of one image, at the crop size of the training."""
  height, width = config.data.crop_size
  return {
    "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables.get("params", {}))),
    "macs": count_macs(model, (height, width)),
    "macs_size": [height, width],
  }


def _memory() -> dict[str, int]:
  """{"memory": peak bytes} of this process's first device, or of the process where a device does not say."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return {"memory": int(stats["peak_bytes_in_use"])}
  try:
    import resource  # not on Windows
  except ImportError:
    return {}
  return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def draw(board: Tracker, step: int, report: Report, classes: Sequence[str]) -> None:
  """The confusion matrix and the IoU of every class, for TensorBoard and other trackers."""
  if jax.process_index() == 0:
    if report.matrix.ndim == 2:
      board.image(step, "eval/confusion_matrix", matrix_picture(report.matrix, classes))
    board.image(step, "eval/IoU_by_class", iou_picture(report.by_class()["IoU"], classes))


def choose_examples(
  report: Report,
  evaluator: Evaluator,
  variables: Any,
  *,
  predict: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[Example]:
  """The best, the worst and the most confused images, with their predictions.

  Every process of a job has to call it, since they compute the predictions together; `predict`, a picture's
  label map by other means, is called by each for itself. Without it the images are padded to one canvas, so
  that a prediction can differ a little from the one that was scored.
  """
  chosen = choose_images(report, most=evaluator.report_images)
  if not chosen:
    return []
  source = evaluator.source
  read = [source[c.index] for c in chosen]
  if predict is None:
    predict = evaluator.predictor(variables, sizes=[example["image"].shape[:2] for example in read])
  return [
    make_example(
      c,
      str(example.get("id", c.index)),
      example["image"],
      example["label"],
      [("prediction", predict(example["image"]))],
      evaluator.info.drawn.palette,
      ignore_label=evaluator.ignore_label,
    )
    for c, example in zip(chosen, read, strict=True)
  ]


def render(
  report: Report,
  info: DatasetInfo,
  *,
  facts: Mapping[str, Any],
  examples: Sequence[Example] = (),
  workdir: epath.PathLike | None = None,
) -> str:
  """The page; with a `workdir`, also its recipe card and its curves, as far as they are there."""
  card, metrics = "", []
  if workdir is not None:
    folder = epath.Path(workdir)
    if (folder / CARD).exists():
      card = (folder / CARD).read_bytes().decode(errors="replace")
    if (folder / METRICS).exists():
      metrics = read_metrics(workdir)
  values = report_values(report, info, facts=facts, examples=examples, card=card, metrics=metrics)
  return render_page("report.html", values)
