"""`report.html` of an evaluation: which images it shows, and what of the run stands beside the scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxseg.data.source import DatasetInfo
from jaxseg.evaluation.page import Example, choose_images, make_example, render_page, report_values
from jaxseg.evaluation.report import Report
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.metrics import METRICS, read_metrics

PAGE = "report.html"
CARD = "recipe.txt"


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
  chosen = choose_images(report)
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
      evaluator.info.palette,
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
