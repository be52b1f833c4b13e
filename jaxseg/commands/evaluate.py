"""Evaluates a trained model: exact scores, a table by class, report.html, report.json and a picture.

  jaxseg eval --workdir=runs/quickstart [--split=val] [--step=best]
  jaxseg eval --source=model.safetensors --config=cgnet_m3n21_camvid
  jaxseg eval --source=model.safetensors --config=cgnet_m3n21_cityscapes --output_labels=labels

The first form evaluates a run of train.py on its own data (or on that of `--config`), the second
any weights that `jaxseg.from_pretrained` reads. `--config.key=value` changes a value of the config.
`--crf` puts the fully-connected CRF of `config.eval.crf` behind the network, and so does any
`--config.eval.crf.key=value`; the report then has the scores of both.
`--output_labels` writes every label map as the test servers of Cityscapes, ADE20K and VOC take it; with
`--images`, those of a folder of test pictures, of which nothing is scored. Weights of other classes are
scored by `--config.eval.class_map`.
Of an image classifier (configs/pretrain.py) the scores are top-1 and top-5.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from jaxseg import data, lazy
from jaxseg.commands import compiled, label_files, outputs, target
from jaxseg.commands.flags import make_parser, parse, split
from jaxseg.commands.target import TrainedModel
from jaxseg.config import validate
from jaxseg.config.keys import name_of
from jaxseg.config.rule import make_inference_rule
from jaxseg.console import print_line
from jaxseg.crf import Settings
from jaxseg.data import reading
from jaxseg.data.source import DatasetInfo
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.classify import ClassificationReport
from jaxseg.evaluation.refined import evaluate_refined
from jaxseg.evaluation.report import Report
from jaxseg.train import distributed, results
from jaxseg.train.evaluating import Evaluator
from jaxseg.train.experiment import make_mesh


def add_flags(parser: argparse.ArgumentParser) -> None:
  """What is scored, how and where to, and the flags of a run of several processes."""
  target.add_flags(parser)
  parser.add_argument("--crf", action="store_true", help="refine the result by config.eval.crf")
  parser.add_argument("--output_labels", metavar="DIR", help="write label maps for a test server")
  parser.add_argument("--images", metavar="DIR", help="with --output_labels: pictures without labels")
  distributed.add_job_flags(parser)


def main(argv: Sequence[str], program: str) -> None:
  """Flags, processes, then `evaluate`; ends the process as `distributed.exit_on_user_error` does."""
  parser = make_parser(program, __doc__)
  add_flags(parser)
  changes, rest = split(argv)
  with distributed.exit_on_user_error(program):
    flags = parse(parser, rest)
    join = lambda config: distributed.initialize(flags, config)  # noqa: E731
    if flags.images and not flags.output_labels:
      raise UserError("--images needs --output_labels=DIR, where the label maps go")
    config = target.choose_config(flags, changes, ready=join)
    validate.validate(config)
    compiled.use_cache(config)
    refine = flags.crf or any(key.startswith("eval.crf.") for key, _ in changes)
    crf = target.crf_settings(config) if refine else None
    output = flags.output or (f"{flags.workdir}/eval" if flags.workdir else "runs/eval")
    distributed.check_same(program, config, source=flags.workdir or flags.source, step=flags.step, crf=refine)
    subject = target.load_model(flags, config)
    settings = dict(crf=crf, other_class_names=flags.other_class_names, output_labels=flags.output_labels)
    if flags.images:
      predict_folder(subject, config, flags.images, **settings)
    else:
      evaluate(subject, config, output=output, workdir=flags.workdir, **settings)


def evaluate(
  subject: TrainedModel,
  config: ml_collections.ConfigDict,
  *,
  output: epath.PathLike,
  crf: Settings | None = None,
  other_class_names: bool = False,
  output_labels: epath.PathLike | None = None,
  workdir: epath.PathLike | None = None,
) -> Report | ClassificationReport:
  """Evaluates on `config`'s data, prints the table, writes the report in three forms to `output`.

  With `crf` the report is of the refined result, and also says what the network alone scores.

  Args:
    subject: what is evaluated.
    config: its data and test-time rule.
    output: a folder for report.html, report.json and panel.png, made when it does not exist and tried before
      anything is evaluated.
    crf: behind the network.
    other_class_names: whether classes under other names will do.
    output_labels: a folder for label maps as test servers take them, tried as well.
    workdir: of the run, whose recipe and curves the report shows.

  Raises:
    UserError: the data cannot be read, have other classes than the model or no label at all, or `output`
      cannot be written.
  """
  mesh = make_mesh(config.mesh)
  info = data.dataset_info(config.data)
  target.check_channels(subject, config)
  target.check_classes(
    subject, info, other_names=other_class_names, class_map=config.eval.get("class_map", ())
  )
  first = jax.process_index() == 0
  if first:
    outputs.try_folder(output)
    if output_labels is not None:
      outputs.try_folder(output_labels, flag="--output_labels")
  if name_of(config) == "classification":
    if crf is not None or output_labels is not None:
      raise UserError(
        "an image classifier has no label maps; leave out --crf, config.eval.crf and --output_labels"
      )
    return _evaluate_classifier(subject, config, output=output, info=info, mesh=mesh)
  evaluator = _evaluator(subject, config, info, mesh)
  count = len(evaluator.source)
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
        details=config.eval.get("details", True),
        progress=progress,
      )
      absent = config.eval.get("absent_classes", "mmsegmentation")
      report, alone = (dataclasses.replace(r, absent=absent) for r in (report, alone))
  if first and report.matrix.sum():
    _print(report, alone, config, info, count)
  if output_labels is not None:
    predict = refined.labels if refined else evaluator.predictor(subject.variables)
    pictures = label_files.split_pictures(evaluator.source)
    _write_labels(output_labels, pictures, predict, info, count)
  if not report.matrix.sum():
    raise UserError(
      f"none of the {count} images of {config.data.name} {config.data.eval_split} has a labelled pixel, so"
      " that there is nothing to score; choose another --split, or correct the labels (jaxseg check-dataset)"
    )
  predict = refined and refined.labels
  picture = evaluator.panel(subject.variables, predict=predict)
  shown = results.choose_examples(report, evaluator, subject.variables, predict=predict)
  if first:
    facts = _facts(subject, config) | {"images": count, "rule": make_inference_rule(config.eval).text()}
    facts |= results.size_facts(subject.model, subject.variables, config)
    if config.eval.get("class_map", ()):
      facts["class_map"] = [list(pair) for pair in config.eval.class_map]
    if crf is not None:
      facts |= {"crf": dataclasses.asdict(crf), "without_crf": _plain(alone.scalars())}
    write_report(output, report, picture, info=info, facts=facts)
    page = results.render(report, info, facts=facts, examples=shown, workdir=workdir)
    outputs.write(epath.Path(output) / results.PAGE, page.encode())
    print_line(f"report and picture in {output}")
  return report


def predict_folder(
  subject: TrainedModel,
  config: ml_collections.ConfigDict,
  images: str,
  *,
  output_labels: epath.PathLike,
  crf: Settings | None = None,
  other_class_names: bool = False,
) -> None:
  """Writes the label maps of a folder of pictures, as the test server of `config`'s data takes them.

  Raises:
    UserError: as `evaluate`, or a picture that cannot be read.
  """
  if name_of(config) == "classification":
    raise UserError("an image classifier has no label maps; leave out --images and --output_labels")
  info = data.dataset_info(config.data)
  class_map = config.eval.get("class_map", ())
  target.check_channels(subject, config)
  target.check_classes(subject, info, other_names=other_class_names, class_map=class_map)
  paths = label_files.find_pictures(images)
  if jax.process_index() == 0:
    outputs.try_folder(output_labels, flag="--output_labels")
  rule = reading.Rule(tuple(config.data.get("value_range", ())), channels=subject.preprocess.channels)
  evaluator = _evaluator(subject, config, info, make_mesh(config.mesh))
  if crf is None:
    predict = evaluator.predictor(subject.variables)
  else:
    predict = evaluator.refined(subject.variables, crf).labels
  _write_labels(output_labels, label_files.folder_pictures(paths, images, rule), predict, info, len(paths))


def _evaluator(
  subject: TrainedModel, config: ml_collections.ConfigDict, info: DatasetInfo, mesh: Mesh
) -> Evaluator:
  return Evaluator(
    subject.model,
    config,
    info=info,
    preprocess=subject.preprocess,
    mesh=mesh,
    num_classes=subject.num_classes,
  )


def _write_labels(folder, pictures, predict, info: DatasetInfo, count: int) -> None:
  first = jax.process_index() == 0
  with tqdm(total=count, unit="label map", disable=None if first else True) as bar:
    done = label_files.write_labels(
      folder,
      pictures,
      predict=predict,
      info=info,
      write=first,
      progress=lambda images: bar.update(images - bar.n),
    )
  if first:
    print_line(f"{done} label maps in {folder}")


def _facts(subject: TrainedModel, config: ml_collections.ConfigDict) -> dict[str, Any]:
  return {
    "source": subject.name,
    "step": subject.step,
    "data": config.data.name,
    "split": config.data.eval_split,
  }


def _print(
  report: Report, alone: Report | None, config: ml_collections.ConfigDict, info: DatasetInfo, count: int
) -> None:
  """The scores, before anything is written: a full disk must not lose them."""
  print_line(report.table([printable(name) for name in info.classes]))
  if alone is not None:
    print_line(f"all with the CRF; the network alone has mIoU {alone.miou:.4f}")
  rule = make_inference_rule(config.eval).text()
  print_line(f"{count} images of {config.data.name} {config.data.eval_split}, {rule}")
  if info.num_classes == 1 and not info.multi_label:
    print_line(
      "warning: there is one class, so that every labelled pixel is right; masks of an object and its"
      " surroundings need two (config.data.label_map) or config.data.multi_label",
      error=True,
    )


def write_report(
  directory: epath.PathLike,
  report: Report,
  picture: np.ndarray,
  *,
  info: DatasetInfo,
  facts: dict[str, Any],
) -> None:
  """`report.json` (scores, per-class table, matrix, and `facts` about what was evaluated) and `panel.png`."""
  cv2 = lazy.load("cv2")
  directory = epath.Path(directory)
  text = json.dumps({**facts, **report.to_dict(info.classes)}, indent=1, allow_nan=False)
  outputs.write(directory / "report.json", (text + "\n").encode())
  outputs.write(
    directory / "panel.png", cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()
  )


def _evaluate_classifier(
  subject: TrainedModel,
  config: ml_collections.ConfigDict,
  *,
  output: epath.PathLike,
  info: DatasetInfo,
  mesh: Mesh,
) -> ClassificationReport:
  """Prints top-1 and top-5, and writes `report.json` to `output`."""
  from jaxseg.train.classification import make_evaluator  # brings Grain

  count = len(data.open_split(config.data, config.data.eval_split))
  first = jax.process_index() == 0
  scores = make_evaluator(subject.model, config, info=info, preprocess=subject.preprocess, mesh=mesh)
  with tqdm(total=count, unit="image", disable=None if first else True) as bar:
    report = scores(subject.variables, progress=lambda images: bar.update(images - bar.n))
  if not first:
    return report
  print_line("  ".join(f"{name} {value:.4f}" for name, value in report.scalars().items()))
  print_line(f"{report.images} images of {config.data.name} {config.data.eval_split}")
  values = {
    **_facts(subject, config),
    "images": report.images,
    "crop_share": config.eval.crop_share,
    **_plain(report.scalars()),
  }
  text = json.dumps(values, indent=1, allow_nan=False)
  outputs.write(epath.Path(output) / "report.json", (text + "\n").encode())
  print_line(f"report in {output}")
  return report


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
  """NaN is no JSON."""
  return {name: None if np.isnan(value) else float(value) for name, value in scores.items()}
