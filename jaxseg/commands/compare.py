"""Finished runs side by side: scores, cost, curves, and the images where they differ.

  jaxseg compare runs/a runs/b runs/c --output=runs/compare
  jaxseg compare runs/a runs/b --latency=512x1024

RUN is a workdir of train.py, or a folder that `jaxseg eval` wrote a report.json into. The table goes to the
terminal; the output folder gets compare.html, with accuracy against parameters, MACs and speed, the curves
over each other, and the settings in which the runs differ. `--latency` measures every workdir's network here
and now, on images of that size.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from jaxseg import bucket, data
from jaxseg.commands import outputs, target, throughput
from jaxseg.commands.flags import parse_size
from jaxseg.commands.networks import open_network
from jaxseg.config import record
from jaxseg.console import print_line
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.page import Chosen, Example, Series, chart, make_example, render_page
from jaxseg.evaluation.page.charts import number_text
from jaxseg.evaluation.page.render import SCORES, curves, example_groups
from jaxseg.train import results
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.experiment import make_mesh
from jaxseg.train.metrics import METRICS, SPEED, read_metrics

PAGE = "compare.html"
_LOW_IS_BEST = ("ECE", "val_loss", "parameters", "macs", "latency", "memory")
_COSTS = {
  "parameters": ("Parameters", "numbers that are trained"),
  "macs": ("MACs", "multiply-adds of one image's forward pass, at the crop size"),
  "latency": ("Latency, ms", "median of one image through the network, 8-bit image to label map"),
  "speed": ("Training images/s", "median over the windows of the log, on whatever device it ran"),
  "memory": ("Peak memory", "of a device in training, or of the process on a CPU, in bytes"),
}
_SHOWN = (
  "mIoU", "mAcc", "aAcc", "fwIoU", "boundary_mIoU", "ECE", "parameters", "macs", "latency", "speed", "memory",
)  # fmt: skip
_SECONDS = 2  # of each measurement of the latency
_NUMBER = (int, float)
_COST_FILE = {f"{key}?": _NUMBER for key in _COSTS}
# What a report.json has to be; a score that is not defined is null.
_REPORT = {
  "data": str,
  "split": str,
  "classes": [{"name": str, "IoU?": _NUMBER}],
  "rule?": str,
  "absent_classes?": str,
  "step?": int,
  "image_scores?": [{"index": int, "mIoU?": _NUMBER}],
  **{f"{key}?": _NUMBER for key in (*SCORES, *_SHOWN)},
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run.

  Attributes:
    path: its folder.
    name: short, and unique among the runs that are compared.
    report: values of its report.json.
    config: resolved values of its config; {} for an evaluation alone.
    lines: of its metrics.jsonl.
    costs: by the names of `_COSTS`, as far as they are known.
  """

  path: str
  name: str
  report: dict[str, Any]
  config: dict[str, Any]
  lines: list[dict[str, Any]]
  costs: dict[str, float]

  @property
  def classes(self) -> list[str]:
    return [entry["name"] for entry in self.report["classes"]]

  def value(self, key: str) -> float | None:
    """A score or a cost; None where it is not known."""
    value = self.costs.get(key) if key in _COSTS else self.report.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The runs, --output, --images and --latency."""
  parser.add_argument("runs", nargs="+", metavar="RUN", help="a workdir, or a folder of jaxseg eval")
  parser.add_argument("--output", metavar="DIR", default="runs/compare", help="default: %(default)s")
  parser.add_argument("--images", type=int, default=4, help="in which the runs differ most; default: 4")
  parser.add_argument(
    "--latency", metavar="HxW", help="measure each workdir's network on this device, on images of this size"
  )


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Writes compare.html; the lines of the table."""
  del changes
  if len(flags.runs) < 2:
    raise UserError("give two runs or more to compare")
  if not 0 <= flags.images <= 64:
    raise UserError(f"--images is {flags.images}; expected 0 to 64")
  size = parse_size(flags.latency, "--latency") if flags.latency is not None else None
  names = _names(flags.runs)
  runs = [read_run(path, name) for path, name in zip(flags.runs, names, strict=True)]
  outputs.try_folder(flags.output)
  notes = _notes(runs)
  if size is not None:
    runs, note = _with_latency(runs, size)
    notes.append(note)
  for line in table(runs):
    print_line(line)
  examples, said = _examples(runs, flags.images)
  page = render_page("compare.html", _values(runs, notes + said, examples))
  outputs.write(epath.Path(flags.output) / PAGE, page.encode())
  return [*map(printable, notes + said), f"comparison in {epath.Path(flags.output) / PAGE}"]


def read_run(path: str, name: str) -> Run:
  """What is known of a run.

  Raises:
    UserError: no run, one that has not been evaluated, or of an image classifier.
  """
  bucket.reach(path)
  folder = epath.Path(path)
  if not folder.is_dir():
    raise UserError(f"run {path!r} is no folder; give workdirs of train.py or folders of jaxseg eval")
  is_workdir = record.is_workdir(folder)
  if not is_workdir and not (folder / results.VALUES).exists():
    raise UserError(f"{path!r} is no run: it has neither checkpoints/ and config.json nor {results.VALUES}")
  values = folder / results.REPORT / results.VALUES if is_workdir else folder / results.VALUES
  if not values.exists():
    raise UserError(f"{path!r} has not been evaluated; jaxseg eval --workdir={path} does it")
  what = "a report of jaxseg eval"
  said = record.load_json(values, {}, what=what)
  if "top1" in said:
    raise UserError(f"{path!r} is the run of an image classifier; compare runs of segmentation models")
  if "mIoU" not in said:  # which may be null
    raise UserError(f"{str(values)!r} is not {what}: it has no 'mIoU'")
  report = record.load_json(values, _REPORT, what=what)
  costs = {key: report[key] for key in ("parameters", "macs") if report.get(key) is not None}
  config, lines = {}, []
  if is_workdir:
    config = record.read(folder)["config"]
    if (folder / results.COST).exists():
      costs |= record.load_json(folder / results.COST, _COST_FILE, what="the costs that train.py wrote")
    lines = read_metrics(folder) if (folder / METRICS).exists() else []
    rates = read_metrics(folder, name=SPEED) if (folder / SPEED).exists() else []
    speeds = [rate["images_per_second"] for rate in rates if rate.get("images_per_second")]
    if speeds:
      costs["speed"] = statistics.median(speeds)
  return Run(
    path,
    name,
    report,
    config,
    lines,
    {k: float(v) for k, v in costs.items() if k in _COSTS and v is not None},
  )


def _with_latency(runs: Sequence[Run], size: tuple[int, int]) -> tuple[list[Run], str]:
  """The runs with what an image takes on this device, and a sentence on it; evaluations have no weights."""
  timed = []
  for run in runs:
    costs = dict(run.costs)
    if run.config:
      (row,), _ = throughput.sweep(open_network(run.path), size, [1], seconds=_SECONDS, say=lambda _: None)
      costs["latency"] = row["latency_p50_ms"]
      print_line(f"{printable(run.name)}: {row['latency_p50_ms']:.4g} ms an image")
    timed.append(dataclasses.replace(run, costs=costs))
  device = jax.local_devices()[0].device_kind
  return timed, f"Latency is that of an image of {size[0]}x{size[1]} on this device ({device})."


def table(runs: Sequence[Run]) -> list[str]:
  """One line a run: scores and costs that any of them has; the best of a column is starred."""
  keys = [key for key in _SHOWN if any(run.value(key) is not None for run in runs)]
  heads = ["run", *(SCORES[key][0] if key in SCORES else _COSTS[key][0] for key in keys)]
  rows = [heads]
  best_of = {key: _best(key, [run.value(key) for run in runs]) for key in keys}
  for number, run in enumerate(runs):
    cells = [_text(key, run.value(key)) + ("*" if number in best_of[key] else " ") for key in keys]
    rows.append([printable(run.name), *cells])
  widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
  return [
    "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
    for row in rows
  ]


def _names(paths: Sequence[str]) -> list[str]:
  """The last parts of the paths by which the runs can be told apart."""
  parts = [[p for p in str(path).rstrip("/").split("/") if p not in ("", ".")] for path in paths]
  for path in paths:
    if [str(other).rstrip("/") for other in paths].count(str(path).rstrip("/")) > 1:
      raise UserError(f"run {path!r} is given twice; name each run once")
  for length in range(1, max(map(len, parts)) + 1):
    names = ["/".join(p[-length:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  return [str(path) for path in paths]


def _notes(runs: Sequence[Run]) -> list[str]:
  notes = []
  scored = dict.fromkeys((run.report["data"], run.report["split"]) for run in runs)
  if len(scored) > 1:
    notes.append(
      "The runs were scored on different data: "
      + ", ".join(f"{name} {split}" for name, split in scored)
      + "."
    )
  rules = dict.fromkeys(str(run.report.get("rule", "")) for run in runs)
  if len(rules) > 1:
    notes.append(f"The runs were scored by different test-time rules: {'; '.join(rules)}.")
  if len({run.report.get("absent_classes", "mmsegmentation") for run in runs}) > 1:
    notes.append("The means of the runs leave out absent classes by different rules.")
  return notes


def _best(key: str, values: Sequence[float | None]) -> set[int]:
  known = [value for value in values if value is not None]
  if len(known) < 2 or min(known) == max(known):
    return set()
  top = min(known) if key in _LOW_IS_BEST else max(known)
  return {i for i, value in enumerate(values) if value == top}


def _float(value: float | int | None) -> float | None:
  return None if value is None else float(value)


def _text(key: str, value: float | None) -> str:
  if value is None:
    return "–"
  return number_text(float(value)) if key in _COSTS else f"{value:.4f}"


def _values(runs: Sequence[Run], notes: list[str], examples: Sequence[Example]) -> dict[str, Any]:
  keys = [key for key in (*SCORES, *_COSTS) if any(run.value(key) is not None for run in runs)]
  rows = []
  for key in keys:
    title, text = SCORES[key] if key in SCORES else _COSTS[key]
    rows.append(_row(title, key, [run.value(key) for run in runs], text))
  classes = []
  if all(run.classes == runs[0].classes for run in runs):
    columns = [[_float(entry.get("IoU")) for entry in run.report["classes"]] for run in runs]
    classes = [
      _row(name, "IoU", list(values)) for name, *values in zip(runs[0].classes, *columns, strict=True)
    ]
  return {
    "title": "Comparison of " + ", ".join(run.name for run in runs),
    "runs": [run.name for run in runs],
    "rows": rows,
    "notes": [
      *notes,
      "The best of a row is bold. Speeds are those of the device on which each run was trained.",
    ],
    "trade_offs": _trade_offs(runs),
    "classes": classes,
    "curves": curves([(run.name, run.lines) for run in runs if run.lines]),
    "groups": example_groups(examples, runs[0].classes),
    "settings": _settings(runs),
  }


def _row(name: str, key: str, values: Sequence[float | None], text: str = "") -> dict[str, Any]:
  top = _best(key, values)
  cells = [{"text": _text(key, v), "value": v, "best": i in top} for i, v in enumerate(values)]
  return {"name": name, "help": text, "cells": cells}


def _trade_offs(runs: Sequence[Run]) -> list[dict[str, Any]]:
  charts = []
  for key, (title, _) in _COSTS.items():
    points = [(run.name, run.costs[key], run.value("mIoU")) for run in runs if run.costs.get(key, 0.0) > 0]
    points = [point for point in points if point[2] is not None]
    if len(points) < 2:
      continue
    names, x, y = (list(column) for column in zip(*points, strict=True))
    series = [
      Series(name, [a], [b], style="points", labels=[name]) for name, a, b in zip(names, x, y, strict=True)
    ]
    drawn = chart(series, title=f"mIoU against {title}", x_label=title, y_label="mIoU", log_x=True)
    if drawn is not None:
      charts.append(drawn)
  return charts


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """Keys of the configs whose values differ."""
  configs = [_flat(run.config) for run in runs]
  if not all(configs):
    return []
  keys = dict.fromkeys(key for config in configs for key in config)
  rows = []
  for key in keys:
    values = [config.get(key) for config in configs]
    if any(value != values[0] for value in values):
      cells = [{"text": "–" if v is None else str(v), "value": None, "best": False} for v in values]
      rows.append({"name": key, "help": "", "cells": cells})
  return rows


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in values.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return flat


def _examples(runs: Sequence[Run], most: int) -> tuple[list[Example], list[str]]:
  """Images whose scores differ most, with every run's prediction; and sentences where that cannot be."""
  if not most:
    return [], []
  if len({(run.report["data"], run.report["split"]) for run in runs}) > 1 or any(
    run.classes != runs[0].classes for run in runs
  ):
    return [], ["Images are not shown, as the runs have different data or classes."]
  if not all(run.config for run in runs):
    return [], ["Images are not shown: only workdirs have the weights to make them."]
  scores = [{e["index"]: e["mIoU"] for e in run.report.get("image_scores", ())} for run in runs]
  shared = [i for i in scores[0] if all(s.get(i) is not None for s in scores)]
  if not shared:
    return [], ["Images are not shown: a run was evaluated without config.eval.details."]
  spread = {i: max(s[i] for s in scores) - min(s[i] for s in scores) for i in shared}
  chosen = sorted(shared, key=lambda i: (-spread[i], i))[:most]
  try:
    return _predicted(runs, scores, chosen), []
  except (UserError, OSError) as error:
    return [], [f"Images are not shown: {error}"]


def _predicted(
  runs: Sequence[Run], scores: Sequence[dict[int, float]], chosen: Sequence[int]
) -> list[Example]:
  config = _config(runs[0])
  source = data.open_split(config.data, config.data.eval_split)
  info = data.dataset_info(config.data)
  read = [source[index] for index in chosen]
  sizes = [example["image"].shape[:2] for example in read]
  predictions: list[list[tuple[str, np.ndarray]]] = [[] for _ in chosen]
  for run in runs:
    own = _config(run)
    subject = target.from_workdir(run.path, step=_step(run))
    evaluator = Evaluator(
      subject.model,
      own,
      info=info,
      preprocess=subject.preprocess,
      mesh=make_mesh(own.mesh),
      source=source,
      num_classes=subject.num_classes,
    )
    predict = evaluator.predictor(subject.variables, sizes=sizes)
    for row, example in zip(predictions, read, strict=True):
      row.append((run.name, predict(example["image"])))
  examples = []
  for index, example, row in zip(chosen, read, predictions, strict=True):
    made = make_example(
      Chosen(index, "differ", max(s[index] for s in scores)),
      str(example.get("id", index)),
      example["image"],
      example["label"],
      row,
      info.drawn.palette,
      ignore_label=config.loss.ignore_label,
    )
    why = ", ".join(f"{run.name} {s[index]:.4f}" for run, s in zip(runs, scores, strict=True))
    examples.append(dataclasses.replace(made, why=f"mIoU: {why}"))
  return examples


def _config(run: Run) -> ml_collections.ConfigDict:
  config = record.read_config(run.path)
  config.data.eval_split = run.report["split"]
  return config


def _step(run: Run) -> str:
  """The checkpoint that was scored, where it is still there, else the best."""
  step = run.report.get("step")
  kept = epath.Path(run.path) / record.CHECKPOINTS / str(step)
  is_other = step is not None and step != results.step_of_best(run.path)
  return str(step) if is_other and kept.exists() else "best"
