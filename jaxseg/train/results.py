"""What an evaluation leaves in a workdir: the best weights as a folder of their own, and the report."""

import json
import math
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from jaxseg.config.record import load_json
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
from jaxseg.models import create_model
from jaxseg.pretrained.schema import value_range_of_run
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.metrics import METRICS, read_metrics
from jaxseg.train.trackers import Tracker
from jaxseg.types import Preprocess

BEST = "best"
SCORE = "score.json"
HEADLINES = ("mIoU", "top1")  # of segmentation and of classification: what the best step has most of
# The last to be copied to a bucket: a folder that has it has the others.
_LAST = "model.safetensors"


REPORT = "eval"  # in a workdir
PAGE = "report.html"
VALUES = "report.json"
COST = "cost.json"
CARD = "recipe.txt"


def on_host(variables: Any, _: Any = None) -> Any:
  """`variables` as NumPy arrays, also where they are split over processes; every process calls it."""
  if jax.process_count() == 1:
    return jax.device_get(variables)
  return multihost_utils.process_allgather(variables, tiled=True)


def write_best(
  workdir: epath.PathLike, record: Mapping[str, Any], variables: Any, score: Mapping[str, Any]
) -> None:
  """Writes `WORKDIR/best`, which is the old folder or the new one at every moment, or for an instant none.

  Args:
    workdir: of the run.
    record: what its `config.json` holds.
    variables: on the host.
    score: "step" and the score, kept in `best/score.json`.

  Raises:
    UserError: it cannot be written.
  """
  target = epath.Path(workdir) / BEST
  try:
    if "://" in str(workdir):
      with tempfile.TemporaryDirectory() as folder:
        _save(pathlib.Path(folder), record, variables, score)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(pathlib.Path(folder).iterdir(), key=lambda file: file.name == _LAST):
          (target / file.name).write_bytes(file.read_bytes())
      return
    place = pathlib.Path(workdir)
    for left in place.glob(f".{BEST}-*"):  # of a run that was killed here
      shutil.rmtree(left, ignore_errors=True)
    part, old = (place / f".{BEST}-{uuid.uuid4().hex}" for _ in range(2))
    _save(part, record, variables, score)
    if pathlib.Path(target).exists():
      pathlib.Path(target).rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
  except OSError as error:
    raise UserError(
      f"{str(target)!r} cannot be written ({error.strerror or error}); make room or choose another --workdir,"
      " and the same command goes on from the last checkpoint"
    ) from error


def read_best(workdir: epath.PathLike) -> dict[str, Any]:
  """The variables of `WORKDIR/best`; of the latest checkpoint, where the run has no such folder.

  Raises:
    UserError: there is neither, or it cannot be read.
  """
  from jaxseg.hub.loading import open_weights

  return traverse_util.unflatten_dict(dict(open_weights(workdir).tensors), sep="/")


def step_of_best(workdir: epath.PathLike) -> int | None:
  """The step whose weights `WORKDIR/best` holds; None where there is no such folder.

  Raises:
    UserError: its `score.json` is damaged.
  """
  path = epath.Path(workdir) / BEST / SCORE
  if not path.exists():
    return None
  return load_json(path, {"step": int}, what="the score of the best weights")["step"]


def score_of_best(workdir: epath.PathLike) -> float:
  """The score of the weights in `WORKDIR/best`; -inf where there are none, or nobody can say."""
  try:
    values = load_json(epath.Path(workdir) / BEST / SCORE)
  except UserError:
    return -math.inf
  score = next((values[name] for name in HEADLINES if name in values), None)
  return score if isinstance(score, float) else -math.inf


def _save(folder: pathlib.Path, record: Mapping[str, Any], variables: Any, score: Mapping[str, Any]) -> None:
  from jaxseg.hub import Net

  fields = {key: _tuples(value) for key, value in record["model"].items() if value not in (None, {}, [])}
  arch = fields.pop("arch")
  preprocess = record["preprocess"]
  net = Net(
    model=create_model(arch, **fields),
    variables=variables,
    preprocess=Preprocess(
      mean=tuple(preprocess["mean"]),
      std=tuple(preprocess["std"]),
      channel_order=preprocess["channel_order"],
      value_range=tuple(map(float, value_range_of_run(record))),
    ),
    classes=tuple(record["classes"]),
    palette=np.asarray(record["palette"], np.uint8),
    arch=arch,
    fields=fields,
    licence=record.get("licence"),
    lineage=record.get("lineage", {}),
  )
  net.save_pretrained(folder)
  (folder / SCORE).write_text(json.dumps(dict(score)) + "\n")


def _tuples(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def write_report(
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
  folder = epath.Path(workdir) / REPORT
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
