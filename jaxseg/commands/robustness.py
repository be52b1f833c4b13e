"""Scores of one or two models under 16 corruptions of 5 severities, and at other image sizes.

  jaxseg robustness runs/mine --images=100
  jaxseg robustness a.safetensors b.safetensors --config=cgnet_m3n21_camvid --sizes=240,360,720

The corruptions are those of ImageNet-C that Kamann and Rother apply to Cityscapes, with their published
parameters, drawn from --seed, the image and the corruption alone: every model sees the same pixels. Images
are scored by the test-time rule of config.eval; --sizes gives lengths of the short side to which images are
resized for the network. `--agreement` scores against the model's own labels of the clean images in place of
the data's, for weights of other classes. Frost is drawn; `--frost=FOLDER` takes photographs of ice, such as
those of the authors' programs, without which its score is not the published one. Of images of other channels
than RGB the corruptions that are of colours are left out.

The output folder gets robustness.json, a table as robustness.md, and robustness.png.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxseg import config as config_lib
from jaxseg import data
from jaxseg.classes import label_type
from jaxseg.commands import compiled, outputs, plots, predict_files, target
from jaxseg.commands.flags import parse_numbers
from jaxseg.commands.target import TrainedModel
from jaxseg.config import record, validate
from jaxseg.config.rule import make_inference_rule
from jaxseg.config.values import nearest
from jaxseg.console import markdown, print_line
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.altered import Chosen, Corrupted, Relabelled
from jaxseg.evaluation.corruptions import CORRUPTIONS, KINDS, SEVERITIES, corruptions_for
from jaxseg.evaluation.predictor import make_predict
from jaxseg.hub.reading import read_image
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.experiment import make_mesh

_LONGEST = 65_536
Scores = dict[str, dict[int, float]]  # corruption → severity → mIoU


def add_flags(parser: argparse.ArgumentParser) -> None:
  """SOURCE ..., --config, --split, --images, what is done to them, --agreement, --seed, --output."""
  parser.add_argument("sources", nargs="+", metavar="SOURCE", help="weights or a workdir; one or two")
  parser.add_argument(
    "--config", metavar="FILE[:ARG,ARG]", help="the data and the rule; default: those of the first workdir"
  )
  parser.add_argument("--split", help="default: config.data.eval_split")
  parser.add_argument("--images", type=int, default=0, help="so many, spread over the split; default: all")
  parser.add_argument(
    "--corruptions", metavar="NAME,NAME", help=f"of {', '.join(CORRUPTIONS)}; or none; default: all"
  )
  parser.add_argument("--severities", metavar="N,N", default="1,2,3,4,5", help="default: %(default)s")
  parser.add_argument("--sizes", metavar="N,N", help="short sides, in pixels, to be tested as well")
  parser.add_argument("--frost", metavar="FOLDER", help="photographs of ice")
  parser.add_argument("--agreement", action="store_true", help="score against the model's own clean labels")
  parser.add_argument(
    "--other_class_names",
    action="store_true",
    help="score although the data call the classes otherwise than the weights do",
  )
  parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
  parser.add_argument("--output", metavar="DIR", default="runs/robustness", help="default: %(default)s")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Evaluates, writes, and gives the table.

  Raises:
    UserError: a wrong flag, more than two sources, or data whose classes are not the model's.
  """
  if len(flags.sources) > 2:
    raise UserError(f"{len(flags.sources)} sources are given; expected one, or two side by side")
  if flags.images < 0 or flags.seed < 0:
    name, value = ("images", flags.images) if flags.images < 0 else ("seed", flags.seed)
    raise UserError(f"--{name} is {value}; expected 0 or more")
  names = _names(flags.corruptions)
  severities = parse_numbers(flags.severities, "--severities", low=1, high=max(SEVERITIES), whole=True)
  sizes = (
    parse_numbers(flags.sizes, "--sizes", low=32, high=16_384, whole=True) if flags.sizes is not None else ()
  )
  if not names and not sizes:
    raise UserError("--corruptions=none without --sizes leaves nothing to test; give one of the two")
  frost = _photos(flags.frost) if flags.frost is not None else ()
  config = _config(flags, changes)
  validate.validate(config)
  names = _possible(names, config.data.get("channels", 3), said=flags.corruptions is not None)
  output = outputs.try_folder(flags.output)
  compiled.use_cache(config)
  source = data.open_split(config.data, config.data.eval_split)
  if flags.images and flags.images < len(source):
    source = Chosen(source, np.linspace(0, len(source) - 1, flags.images).round().astype(int).tolist())
  tests = _Tests(names, severities, sizes, frost=frost, seed=flags.seed, config=config)
  results = []
  for path in flags.sources:
    model = target.from_workdir(path) if record.is_workdir(path) else target.from_source(path)
    results.append(_evaluate(model, source, tests, flags))
  facts = {
    "data": config.data.name,
    "split": config.data.eval_split,
    "images": len(source),
    "score": "mIoU with the clean prediction" if flags.agreement else "mIoU",
    "rule": make_inference_rule(config.eval).text(),
    "seed": flags.seed,
    "frost": "photographs" if frost else "drawn",
    "results": results,
  }
  table = _table(results, severities)
  outputs.write(output / "robustness.json", (json.dumps(facts, indent=1) + "\n").encode())
  outputs.write(output / "robustness.md", _markdown(table, facts).encode())
  outputs.write(output / "robustness.png", _plot(results, facts, severities))
  names = " and ".join(result["source"] for result in results)
  about = (
    f"{facts['score']} of {names} on {len(source)} images of {config.data.name} {config.data.eval_split}"
  )
  return [*_aligned(table), about, f"robustness.json, .md and .png in {printable(flags.output)}"]


@dataclasses.dataclass(frozen=True)
class _Tests:
  names: tuple[str, ...]
  severities: tuple[int, ...]
  sizes: tuple[int, ...]
  frost: tuple[np.ndarray, ...]
  seed: int
  config: ml_collections.ConfigDict


def _evaluate(
  model: TrainedModel, source: Source, tests: _Tests, flags: argparse.Namespace
) -> dict[str, Any]:
  """{"source", "clean", "corruptions": Scores, "sizes": {short side: mIoU}} of one model."""
  config, mesh = tests.config, make_mesh(tests.config.mesh)
  target.check_channels(model, config)
  if flags.agreement:
    if config.eval.get("class_map"):  # from the model's classes to the data's, which are not scored
      config = config.copy_and_resolve_references()
      config.eval.class_map = ()
    source, info = _own_labels(model, source, config, mesh)
  else:
    info = data.dataset_info(config.data)
    class_map = config.eval.get("class_map", ())
    target.check_classes(model, info, other_names=flags.other_class_names, class_map=class_map)

  def score(examples: Source, changed: ml_collections.ConfigDict = config) -> float:
    evaluator = Evaluator(
      model.model,
      changed,
      info=info,
      preprocess=model.preprocess,
      mesh=mesh,
      source=examples,
      num_classes=model.num_classes,
    )
    report = evaluator(model.variables, say=lambda _: None)
    if not report.matrix.sum():
      raise UserError(f"none of the {len(source)} images has a labelled pixel; choose another --split")
    return float(report.miou)

  name, began = printable(pathlib.PurePath(model.name).name), time.monotonic()
  result: dict[str, Any] = {"source": name, "clean": score(source), "corruptions": {}, "sizes": {}}
  print_line(f"{name}: clean {result['clean']:.4f}")
  for corruption in tests.names:
    scores = result["corruptions"][corruption] = {}
    for severity in tests.severities:
      scores[severity] = score(Corrupted(source, corruption, severity, tests.seed, tests.frost))
    print_line(
      f"{name}: {corruption} {' '.join(f'{s:.4f}' for s in scores.values())}"
      f" ({time.monotonic() - began:.0f} s so far)"
    )
  for side in tests.sizes:
    changed = config.copy_and_resolve_references()
    changed.eval.resize = (_LONGEST, side)
    result["sizes"][side] = score(source, changed)
    print_line(f"{name}: short side {side} {result['sizes'][side]:.4f}")
  return result


def _own_labels(
  model: TrainedModel, source: Source, config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[Source, DatasetInfo]:
  """The source with the labels that the model gives to the clean images, and its classes."""
  if model.num_classes > 255:
    raise UserError(f"{model.name} has {model.num_classes} classes; --agreement takes at most 255")
  predict = make_predict(
    model.model,
    preprocess=model.preprocess,
    rule=make_inference_rule(config.eval),
    mesh=mesh,
    align_corners=config.loss.align_corners,
  )
  several = getattr(model.model, "multi_label", False)
  kind = label_type(model.num_classes) if several else np.uint8
  labels = [
    np.asarray(predict(model.variables, np.asarray(source[i]["image"])[None]))[0].astype(kind)
    for i in range(len(source))
  ]
  classes = tuple(model.classes) or tuple(map(str, range(model.num_classes)))
  palette = np.zeros((model.num_classes, 3), np.uint8)
  return Relabelled(source, labels), DatasetInfo("own labels", classes, palette, several)


def _config(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> ml_collections.ConfigDict:
  for key, _ in changes:
    if key.startswith(("model.", "preprocess.")):
      raise UserError(f"config.{key} would have no effect, as trained models are tested; leave it out")
  if flags.config:
    config = config_lib.load(flags.config, overrides=changes)
  else:
    workdir = next((path for path in flags.sources if record.is_workdir(path)), None)
    if workdir is None:
      raise UserError("give --config=FILE, which says on what data to test")
    config = record.read_config(workdir)
    config_lib.change(config, changes)
  if flags.split:
    config.data.eval_split = flags.split
  target.fit_preprocess(config)
  return config


def _names(text: str | None) -> tuple[str, ...]:
  if text is None:
    return tuple(CORRUPTIONS)
  if text == "none":
    return ()
  names = tuple(dict.fromkeys(text.split(",")))
  for name in names:
    if name not in CORRUPTIONS:
      near = nearest(name, CORRUPTIONS)
      raise UserError(f"--corruptions holds {printable(name)!r}, which is none{near}; --help lists them")
  return names


def _possible(names: tuple[str, ...], channels: int, *, said: bool) -> tuple[str, ...]:
  """Those that images of so many channels can have; of what the user asked for all have to be."""
  known = corruptions_for(channels)
  without = [name for name in names if name not in known]
  if without and said:
    raise UserError(
      f"--corruptions holds {without[0]}, which is of colours, and config.data.channels is {channels}; choose"
      f" from {', '.join(known)}"
    )
  if without:
    print_line(f"images of {channels} channels: {', '.join(without)} are of colours and left out")
  return tuple(name for name in names if name in known)


def _photos(folder: str) -> tuple[np.ndarray, ...]:
  if not pathlib.Path(folder).is_dir():
    raise UserError(f"--frost is {printable(folder)!r}, which is no folder")
  return tuple(
    np.asarray(read_image(file.path)) for file in predict_files.find_files([folder]) if not file.is_video
  )


def _mean(result: dict[str, Any], names: Sequence[str], severity: int | None = None) -> float | None:
  values = [
    score
    for name in names
    for level, score in result["corruptions"].get(name, {}).items()
    if severity in (None, level)
  ]
  return float(np.mean(values)) if values else None


def _table(results: list[dict[str, Any]], severities: Sequence[int]) -> list[list[str]]:
  """Rows of cells: a line for each corruption with its mean and every severity, for each model."""
  words = ("mean", *map(str, severities))
  head = ["", *(f"{r['source']}: {word}" if len(results) > 1 else word for r in results for word in words)]
  rows = [head]

  def add(name: str, means: list[float | None], levels: list[list[float | None]]) -> None:
    cells = [name]
    for mean, level in zip(means, levels, strict=True):
      cells += ["" if value is None else f"{value:.3f}" for value in (mean, *level)]
    rows.append(cells)

  blank = [None] * len(severities)
  add("clean", [r["clean"] for r in results], [blank] * len(results))
  for kind, names in KINDS.items():
    tested = [name for name in names if name in results[0]["corruptions"]]
    for name in tested:
      scores = [[r["corruptions"][name][level] for level in severities] for r in results]
      add(name, [float(np.mean(s)) for s in scores], scores)
    if len(tested) > 1:
      levels = [[_mean(r, tested, level) for level in severities] for r in results]
      add(f"mean of {kind}", [_mean(r, tested) for r in results], levels)
  every = list(results[0]["corruptions"])
  if every:
    levels = [[_mean(r, every, level) for level in severities] for r in results]
    add("mean of all", [_mean(r, every) for r in results], levels)
    ratios = [m / r["clean"] if r["clean"] else None for r in results for m in [_mean(r, every)]]
    add("share of clean", ratios, [blank] * len(results))
  for side in results[0]["sizes"]:
    add(f"short side {side}", [r["sizes"][side] for r in results], [blank] * len(results))
  return rows


def _aligned(rows: list[list[str]]) -> list[str]:
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return [
    "  ".join(
      [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
    ).rstrip()
    for row in rows
  ]


def _markdown(rows: list[list[str]], facts: dict[str, Any]) -> str:
  lines = [
    f"# {facts['score']} under corruptions",
    "",
    f"{' and '.join(markdown(r['source']) for r in facts['results'])} on"
    f" {facts['images']} images of {markdown(facts['data'])} {markdown(facts['split'])}, {facts['rule']};"
    f" seed {facts['seed']}, frost {facts['frost']}.",
    "",
  ]
  for i, row in enumerate(rows):
    lines.append("| " + " | ".join(markdown(cell) for cell in row) + " |")
    if i == 0:
      lines.append("|---|" + "---:|" * (len(row) - 1))
  return "\n".join(lines) + "\n"


def _plot(results: list[dict[str, Any]], facts: dict[str, Any], severities: Sequence[int]) -> bytes:
  names = list(results[0]["corruptions"])
  sizes = list(results[0]["sizes"])
  wide = bool(names)
  columns = 2 * wide + bool(sizes)
  made, (row,) = plots.figure(1, columns, size=(6.2 * wide + 3.4 * (columns - wide), 4.4))
  handles = []
  if wide:
    bars, curve = row[0], row[1]
    width = 0.8 / len(results)
    for i, result in enumerate(results):
      places = np.arange(len(names)) + (i - (len(results) - 1) / 2) * width
      means = [_mean(result, [name]) for name in names]
      handle = bars.bar(places, means, width, color=plots.COLORS[i])
      handles.append((handle, result["source"]))
      bars.axhline(result["clean"], color=plots.COLORS[i], linestyle="--", linewidth=1)
      curve.plot(
        [0, *severities],
        [result["clean"], *(_mean(result, names, level) for level in severities)],
        "o-",
        color=plots.COLORS[i],
      )
    plots.tidy(bars, title="mean over severities (dashed: clean)", y=facts["score"])
    bars.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=60, ha="right")
    bars.tick_params(axis="x", labelsize=8)
    bars.grid(False, axis="x")
    plots.tidy(curve, title="mean over corruptions", x="severity (0: clean)")
    curve.set_xticks([0, *severities])
    curve.set_ylim(bottom=0)
    bars.sharey(curve)
  if sizes:
    for i, result in enumerate(results):
      (handle,) = row[-1].plot(sizes, list(result["sizes"].values()), "o-", color=plots.COLORS[i])
      if not wide:
        handles.append((handle, result["source"]))
    plots.tidy(row[-1], title="other sizes", x="short side, pixels", y="" if wide else facts["score"])
    row[-1].set_ylim(bottom=0)
  plots.legend_below(made, [h for h, _ in handles], [name[:40] for _, name in handles])
  return plots.png(made)
