"""What `jaxseg eval` and `jaxseg crf-search` are asked to look at: flags → a config and a trained model."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from etils import epath

from jaxseg import config as config_lib
from jaxseg.checkpoint.reading import restore_step
from jaxseg.config import record
from jaxseg.config.keys import name_of
from jaxseg.crf import Settings
from jaxseg.data.source import DatasetInfo
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.class_map import make_class_map
from jaxseg.models import channels_of
from jaxseg.train import results
from jaxseg.types import Preprocess

_TRACED = (64, 64)
# Keys of config.eval that older runs lack.
_LATER_KEYS = (
  ("details", True),
  ("report_images", 12),
  ("absent_classes", "mmsegmentation"),
  ("class_map", ()),
  ("threshold", 0.5),
)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """What is evaluated: a model with its variables and its own idea of the input."""

  name: str
  model: nn.Module
  variables: Any
  preprocess: Preprocess
  num_classes: int
  step: int | None = None
  classes: tuple[str, ...] = ()  # () where its file does not tell


def from_workdir(directory: epath.PathLike, *, step: str = "best") -> TrainedModel:
  """The model of a run of train.py, at a checkpoint: "best", "latest" or a number.

  Raises:
    UserError: no workdir, or no such checkpoint.
  """
  if step not in ("best", "latest") and not step.isdigit():
    raise UserError(f"--step is {step!r}; expected best, latest or a number")
  values = record.read(directory)
  config = record.read_config(directory)
  # The step that was really read: "best" and "latest" may be another one tomorrow.
  if step == "best" and (found := results.step_of_best(directory)) is not None:
    variables = results.read_best(directory)
  else:
    wanted = int(step) if step.isdigit() else "latest"
    found, variables = restore_step(epath.Path(directory) / record.CHECKPOINTS, step=wanted)
  return TrainedModel(
    name=str(directory),
    model=config_lib.build_model(config, config.model.num_classes),
    variables=variables,
    preprocess=config_lib.make_preprocess(config.preprocess),
    num_classes=config.model.num_classes,
    step=found,
    classes=tuple(values["classes"]),
  )


def from_source(source: str) -> TrainedModel:
  """Weights that `jaxseg.from_pretrained` reads.

  Raises:
    UserError: it cannot be read.
  """
  from jaxseg import hub

  net = hub.from_pretrained(source)
  num_classes = getattr(getattr(net.model, "decoder", net.model), "num_classes", None)
  if num_classes is None:
    raise UserError(f"{source} holds {net.arch} without a classifier; give weights that have one")
  known = () if "classes" in net.assumed else tuple(net.classes or ())
  return TrainedModel(source, net.model, net.variables, net.preprocess, num_classes, classes=known)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--workdir, --source, --config, --split, --step and --output."""
  parser.add_argument("--workdir", metavar="DIR", help="a run of train.py")
  parser.add_argument("--source", metavar="FILE", help="weights, instead of a workdir")
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", help="the data, where it is not the workdir's")
  parser.add_argument("--split", help="default: config.data.eval_split")
  parser.add_argument(
    "--other_class_names",
    action="store_true",
    help="score although the data call the classes otherwise than the weights do",
  )
  parser.add_argument("--step", default="best", help="checkpoint of the workdir: best, latest or a number")
  parser.add_argument(
    "--output", metavar="DIR", help="default: a folder in WORKDIR, or in runs for a --source"
  )


def choose_config(
  flags: argparse.Namespace,
  changes: Sequence[tuple[str, str]],
  *,
  ready: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> ml_collections.ConfigDict:
  """The config that the flags mean, with `changes` (`overrides.split`) applied; a workdir as --source is one.

  `ready` is called with it before any weights are read, as in `config.load`.

  Raises:
    UserError: neither or both of --workdir and --source, no config, a wrong change, or one of a model that
      is not the config's.
  """
  if (flags.workdir is None) == (flags.source is None):
    raise UserError("give either --workdir=DIR or --source=FILE")
  for key, _ in changes:
    if key.startswith("preprocess."):
      raise UserError(
        f"config.{key} would have no effect: images are normalised as the weights were trained; leave it out"
      )
  if flags.source and record.is_workdir(flags.source):
    flags.workdir, flags.source = flags.source, None
  if flags.config:
    config = config_lib.load(flags.config, overrides=changes, ready=ready)
  elif flags.workdir:
    config = record.read_config(flags.workdir)
  else:
    raise UserError("--source needs --config=FILE, which says on what data to evaluate")
  with config.unlocked():  # a run from before there were these
    if "crf" not in config.eval:
      config.eval.crf = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
    if name_of(config) == "segmentation":
      for key, value in _LATER_KEYS:
        if key not in config.eval:
          config.eval[key] = value
  if (flags.config or flags.source) and any(key.startswith("model.") for key, _ in changes):
    raise UserError(
      "config.model is not the model that is evaluated, so that changing it has no effect;"
      " give --workdir alone to evaluate its model with changed fields"
    )
  if not flags.config:
    config_lib.change(config, changes)
    if ready is not None:
      ready(config)
  if flags.split:
    config.data.eval_split = flags.split
  fit_preprocess(config)
  return config


def fit_preprocess(config: ml_collections.ConfigDict) -> None:
  """Gives `config.preprocess` a value for each channel; it is not read, as weights bring their own."""
  channels = config.data.get("channels", 3)
  if "preprocess" in config and len(config.preprocess.mean) != channels:
    config.preprocess.mean, config.preprocess.std = (0.0,) * channels, (1.0,) * channels


def check_classes(
  model: TrainedModel, info: DatasetInfo, *, other_names: bool = False, class_map: Sequence[Any] = ()
) -> None:
  """The model's classes are those of the data, or `class_map` says which is which.

  Args:
    model: what is evaluated.
    info: of the data.
    other_names: whether the same number under other names will do.
    class_map: `config.eval.class_map`.

  Raises:
    UserError: a map of classes that there are not; without one, another number of classes, or other names
      or another order.
  """
  if info.multi_label != getattr(model.model, "multi_label", False):
    several = "several classes or none" if info.multi_label else "exactly one class"
    raise UserError(
      f"a pixel of {info.name} has {several}, which {model.name} was not trained for; set"
      f" config.data.multi_label={str(not info.multi_label).lower()}, or choose other weights"
    )
  if class_map and info.multi_label:
    raise UserError("config.eval.class_map is for pixels of one class; leave it out with data.multi_label")
  if class_map:
    make_class_map(class_map, num_model=model.num_classes, num_data=info.num_classes)
    return
  if info.num_classes != model.num_classes:
    raise UserError(
      f"{model.name} has {model.num_classes} classes, but {info.name} has {info.num_classes};"
      " choose the data that it was trained for, or say which class is which with config.eval.class_map"
    )
  if other_names or not model.classes or tuple(model.classes) == tuple(info.classes):
    return
  at, pair = next((i, p) for i, p in enumerate(zip(model.classes, info.classes, strict=True)) if p[0] != p[1])
  trained, said = map(printable, pair)
  raise UserError(
    f"class {at} of {model.name} is {trained!r}, but {info.name} calls it {said!r}; choose the data that it"
    " was trained for, or give --other_class_names where only the words differ"
  )


def check_channels(model: TrainedModel, config: ml_collections.ConfigDict) -> None:
  """Raises a UserError where the data's images have other channels than the model takes."""
  channels = config.data.get("channels", 3)
  if model.preprocess.channels != channels:
    raise UserError(
      f"{model.name} takes images of {model.preprocess.channels} channels, but config.data.channels is"
      f" {channels}; choose the data that it was trained for, or other weights"
    )


def load_model(flags: argparse.Namespace, config: ml_collections.ConfigDict) -> TrainedModel:
  """The network that the flags mean; a workdir's with the fields of `config.model`, where that is its own.

  Raises:
    UserError: it cannot be read, or a changed field does not fit the parameters.
  """
  if not flags.workdir:
    return from_source(flags.source)
  subject = from_workdir(flags.workdir, step=flags.step)
  if flags.config:
    return subject
  model = config_lib.build_model(config, subject.num_classes)
  image = jax.ShapeDtypeStruct((1, *_TRACED, channels_of(model)), np.float32)
  wanted = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)["params"]
  shapes = lambda tree: {  # noqa: E731
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  differ = sorted(path for path, _ in shapes(wanted).items() ^ shapes(subject.variables["params"]).items())
  if differ:
    raise UserError(
      f"config.model as changed does not fit the parameters of {flags.workdir}: {', '.join(differ[:3])};"
      " only fields without parameters, such as an output stride, can be changed after training"
    )
  return dataclasses.replace(subject, model=model)


def crf_settings(config: ml_collections.ConfigDict) -> Settings:
  """The CRF of `config.eval.crf`.

  Raises:
    UserError: a value that cannot be, with its key.
  """
  try:
    return Settings(**config.eval.crf)
  except ValueError as error:
    raise UserError(f"config.eval.crf.{error}") from None
