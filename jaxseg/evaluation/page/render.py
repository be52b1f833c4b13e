"""A report's numbers → the values of the template → HTML, by Jinja2 with everything escaped."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxseg
from jaxseg import lazy
from jaxseg.data.source import DatasetInfo
from jaxseg.evaluation.page.charts import Series, chart
from jaxseg.evaluation.page.choice import confused_pairs
from jaxseg.evaluation.page.pictures import Example
from jaxseg.evaluation.report import Report
from jaxseg.metrics import pixels_per_class, reliability

# name of a scalar → (what the page calls it, what it is); in this order.
SCORES = {
  "mIoU": ("mIoU", "mean over classes of the intersection over union"),
  "mAcc": ("mAcc", "mean over classes of the share of pixels that were found"),
  "aAcc": ("Pixel accuracy", "share of all labelled pixels that are right"),
  "mDice": ("mF1", "mean over classes of the F1 score (Dice)"),
  "fwIoU": ("fwIoU", "IoU weighted by the classes' shares of the truth"),
  "boundary_mIoU": ("Boundary mIoU", "IoU of the bands along the contours, 2 % of the diagonal wide"),
  "image_mIoU": ("Per-image mIoU", "mean over images of each image's mean IoU"),
  "ECE": ("ECE", "expected calibration error, 15 bins; 0 is best"),
  "val_loss": ("Loss", "cross entropy a labelled pixel, in nats"),
}
RULES = {
  "mmsegmentation": "Means leave out classes that occur in neither truth nor prediction (mmsegmentation).",
  "cgnet": "mIoU and mF1 leave out classes without a single hit (the CGNet paper's code).",
}
_MOST_IMAGES = 5000  # rows of the table of images
_GROUPS = {
  "worst": "Worst images",
  "best": "Best images",
  "confused": "Most confused pairs",
  "differ": "Where the runs differ",
}


def render_page(template: str, values: Mapping[str, Any]) -> str:
  """A template of this folder with `values`; whatever they hold is shown as text.

  Raises:
    UserError: Jinja2 is not installed.
  """
  jinja2 = lazy.load("jinja2")
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(_template),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["score"] = lambda x: "–" if x is None or x != x else f"{x:.4f}"
  environment.filters["percent"] = lambda x: "–" if x is None or x != x else f"{x:.2%}"
  return environment.get_template(template).render(version=jaxseg.__version__, **values)


def _template(name: str) -> str:
  folder = importlib.resources.files("jaxseg.evaluation.page") / "templates"
  return (folder / name).read_text(encoding="utf-8")


def report_values(
  report: Report,
  info: DatasetInfo,
  *,
  facts: Mapping[str, Any],
  examples: Sequence[Example] = (),
  card: str = "",
  metrics: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """What `report.html` shows.

  Args:
    report: the scores.
    info: names and colours of the classes.
    facts: what was evaluated: source, step, data, split, images, rule.
    examples: images to show.
    card: the recipe card of the run.
    metrics: lines of its `metrics.jsonl`.
  """
  scalars = {**report.scalars(), "mDice": report.mdice, "fwIoU": report.fwiou}
  pairs = confused_pairs(report.matrix, most=15)
  truth = pixels_per_class(report.matrix)
  calibration, trimap, histogram = _details(report)
  columns = report.by_class()
  return {
    "title": f"{facts.get('source', 'model')} on {info.name} {facts.get('split', '')}".strip(),
    "facts": [(name, _text(value)) for name, value in facts.items()],
    "scores": [
      {"name": title, "help": text, "value": scalars[key]}
      for key, (title, text) in SCORES.items()
      if key in scalars
    ],
    "notes": [RULES[report.absent], *([report.note] if report.note else [])],
    "classes": [
      {
        "name": name,
        "color": _hex(info.palette[i]),
        "share": float(truth[i] / max(report.pixels, 1)),
        **{key: float(values[i]) for key, values in columns.items()},
      }
      for i, name in enumerate(info.classes)
    ],
    "has_boundary": "BoundaryIoU" in columns,
    "matrix": {"classes": list(info.classes), "counts": report.matrix.tolist()}
    if report.matrix.ndim == 2
    else None,
    "pairs": [
      {
        "truth": info.classes[t],
        "prediction": info.classes[p],
        "pixels": n,
        "share": n / max(int(truth[t]), 1),
      }
      for t, p, n in pairs
    ],
    "calibration": calibration,
    "trimap": trimap,
    "histogram": histogram,
    "groups": example_groups(examples, info.classes),
    "images": _images(report, examples),
    "card": card,
    "curves": curves([("run", metrics)]) if metrics else [],
  }


def example_groups(examples: Sequence[Example], classes: Sequence[str]) -> list[dict[str, Any]]:
  """Examples by the reason why they are shown, with their captions."""
  groups = []
  for key, title in _GROUPS.items():
    members = []
    for example in examples:
      if example.chosen.group != key:
        continue
      why = example.why or f"mIoU {example.chosen.score:.4f}, {example.right:.1%} of the pixels right"
      if example.chosen.pair is not None:
        a, b = (classes[i] for i in example.chosen.pair)
        why = f"{a} taken for {b} in {example.chosen.pixels:,} pixels; {why}"
      members.append({"name": example.name, "why": why, "layers": example.layers, "size": example.size})
    if members:
      groups.append({"key": key, "title": title, "members": members})
  return groups


def curves(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
  """Charts of the losses, learning rates and scores of runs over their steps, from `metrics.jsonl`."""
  charts = []
  one = len(runs) == 1
  for keys, title in (
    (("loss", "val_loss"), "Loss"),
    (("mIoU", "boundary_mIoU", "image_mIoU"), "Scores"),
    (("lr",), "Learning rate"),
  ):
    series = []
    for name, lines in runs:
      for key in keys if one else keys[:1]:
        found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        x, y = [step for step, _ in found], [value for _, value in found]
        style = "points" if 0 < len(found) <= 1 else "line"
        series.append(Series(key if one else name, x, y, style=style))
    drawn = chart(series, title=title, x_label="step", y_label=", ".join(keys if one else keys[:1]))
    if drawn is not None:
      charts.append(drawn)
  return charts


def _details(report: Report) -> tuple[Any, Any, Any]:
  """Charts of calibration, trimap IoU and images' scores; None for what was not counted."""
  if report.details is None:
    return None, None, None
  calibration = None
  if report.details.calibration is not None:
    confidence, accuracy, share = (x.tolist() for x in reliability(report.details.calibration))
    calibration = {
      "chart": chart(
        [
          Series("accuracy", confidence, accuracy),
          Series("perfect", [0.0, 1.0], [0.0, 1.0], style="dashed"),
          Series("share of the pixels", confidence, share),
        ],
        title="Calibration",
        x_label="probability of the predicted class",
        y_label="accuracy",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
      ),
      "rows": list(zip(confidence, accuracy, share, strict=True)),
    }
  widths = report.trimap_miou()
  trimap = chart(
    [Series("mIoU", list(widths), list(widths.values()))],
    title="Trimap IoU",
    x_label="pixels on each side of a contour",
    y_label="mIoU",
  )
  scores = report.details.image_iou(report.absent)
  histogram = None
  if len(scores) >= 10:
    counts, edges = np.histogram(scores[~np.isnan(scores)], bins=20, range=(0.0, 1.0))
    steps = [(float(x), float(n)) for i, n in enumerate(counts) for x in (edges[i], edges[i + 1])]
    histogram = chart(
      [Series("images", [x for x, _ in steps], [n for _, n in steps])],
      title="Images by mIoU",
      x_label="mIoU of an image",
      y_label="images",
      x_range=(0.0, 1.0),
    )
  return calibration, trimap, histogram


def _images(report: Report, examples: Sequence[Example]) -> list[dict[str, Any]]:
  if report.details is None:
    return []
  names = {example.chosen.index: example.name for example in examples}
  rows = [
    {
      "index": image.index,
      "name": image.name or names.get(image.index, ""),
      "score": float(score),
      "pixels": int(image.pixels.sum()),
    }
    for image, score in zip(report.details.images, report.details.image_iou(report.absent), strict=True)
  ]
  rows.sort(key=lambda row: row["score"])
  return rows[:_MOST_IMAGES]


def _text(value: Any) -> str:
  if isinstance(value, Mapping):
    return ", ".join(f"{key} {_text(v)}" for key, v in value.items())
  if isinstance(value, (list, tuple)):
    return (
      ", ".join(map(_text, value))
      if not value or not isinstance(value[0], (list, tuple))
      else "; ".join(" → ".join(map(str, pair)) for pair in value)
    )
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hex(colour: np.ndarray) -> str:
  return "#" + "".join(f"{int(x):02x}" for x in colour)
