"""Configs: built from a model's own fields, loaded from a file, shrunk, checked.

A config is a `ml_collections.ConfigDict` made by the `get_config(arg)` of one file;
`configs/common.py` holds the presets that the files share.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import ml_collections
import numpy as np
from ml_collections import config_dict

from jaxseg import catalog, models
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.layers.atrous import check_output_stride
from jaxseg.train import config_file
from jaxseg.train import overrides as overrides_lib
from jaxseg.train.tasks import name_of
from jaxseg.types import Preprocess

DTYPES = ("float32", "bfloat16")
# Weight in the loss of a map that a model gives beside "logits": what was published for it.
_AUX_WEIGHT = 0.4
_SCALE_WEIGHT = 1.0

# Fields of encoders that say how many blocks each stage has; `:smoke` sets every entry to one.
_DEPTH_FIELDS = ("num_blocks", "depths", "stage_sizes")
_SMOKE_SIZE = 64


def model_config(
  arch: str,
  *,
  num_classes: int = 0,
  encoder: Mapping[str, Any] | None = None,
  decoder: Mapping[str, Any] | None = None,
  aux_decoder: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
  """The model's part of a config: every Linen field of its encoder and decoders is a key.

  A system that only offers an auxiliary decoder has the key `auxiliary`, which switches it on.

  Args:
    arch: a published system (`jaxseg.list_models()`), or an encoder alone, as an image classifier.
    num_classes: 0 takes the data set's.
    encoder: fields that differ from the system's.
    decoder: likewise; `rates` that follow the encoder's output stride do so here, too.
    aux_decoder: likewise; any fields switch an offered one on.

  Raises:
    UserError: unknown system or field, a tuple of the wrong length.
  """
  if arch not in models.list_models():
    raise UserError(f"there is no model called {arch!r}; {catalog.suggestion(arch, models.list_models())}")
  config = ml_collections.ConfigDict({"arch": arch, "num_classes": num_classes})
  following = {}
  if arch in models.SYSTEMS:
    system = models.SYSTEMS[arch]
    config.scales = system.scales
    if system.aux_offered is not None:
      config.auxiliary = bool(aux_decoder)
    following = models.decoder_rates(arch, (encoder or {}).get("output_stride"))
  given = {"encoder": encoder or {}, "decoder": following | dict(decoder or {})}
  given["aux_decoder"] = aux_decoder or {}
  for part, entry, published in parts_of(arch):
    config[part] = _fields_config(entry, {**published, **given.pop(part)}, kind=f"{part} of {arch}")
  for part, fields in given.items():
    if fields:
      raise UserError(f"{arch} has no {part}, so its fields {sorted(fields)} cannot be set")
  return config


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> nn.Module:
  """The Linen module of `config.model`, for `num_classes` classes; `config.dtype` where a part has none."""
  check_fields(config.model)
  parts = model_fields(config)
  return models.create_model(
    config.model.arch, num_classes=num_classes, scales=tuple(config.model.get("scales", ())) or None, **parts
  )


def model_fields(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
  """{"encoder": fields, "decoder": fields, ...} as `create_model` takes them, dtypes as strings."""
  parts = {}
  for part, _, _ in parts_of(config.model.arch):
    # A workdir or an overridden arch may lack what the system offers.
    if part == "aux_decoder" and not config.model.get("auxiliary", part in config.model):
      continue
    parts[part] = dict(config.model[part])
    if "dtype" in parts[part]:
      parts[part]["dtype"] = parts[part]["dtype"] or config.dtype
  return parts


def check_fields(model: ml_collections.ConfigDict) -> None:
  """Values of the model's fields against their annotations: choices, tuple lengths.

  Raises:
    UserError: naming the key, the value and what is allowed.
  """
  for part, entry, _ in parts_of(model.arch):
    for name, field in catalog.fields(entry).items():
      if name in model.get(part, ()):
        _check_field(f"config.model.{part}.{name}", model[part][name], field.type)
  if "output_stride" in model.encoder:
    try:
      system = models.SYSTEMS.get(model.arch)
      check_output_stride(system.encoder if system else model.arch, model.encoder.output_stride)
    except ValueError as error:
      raise UserError(f"config.model.encoder.{error}") from None


def parts_of(arch: str) -> list[tuple[str, Any, Mapping[str, Any]]]:
  """(key in the config, catalog entry, the system's own fields) of a system's parts, offered ones too."""
  if arch in ENCODERS:
    return [("encoder", ENCODERS[arch], {})]
  system = models.SYSTEMS[arch]
  parts = [
    ("encoder", ENCODERS[system.encoder], system.encoder_fields),
    ("decoder", DECODERS[system.decoder], system.decoder_fields),
  ]
  aux = system.aux_decoder or system.aux_offered
  if aux is not None:
    parts.append(("aux_decoder", DECODERS[aux], system.aux_decoder_fields))
  return parts


def _fields_config(entry: Any, values: Mapping[str, Any], *, kind: str) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  known = catalog.fields(entry)
  for name in values:
    if name not in known:
      raise UserError(f"{kind} has no field {name!r}{overrides_lib.nearest(name, known)}")
  for name, value in (catalog.defaults(entry) | dict(values)).items():
    if name == "num_classes":
      continue  # config.model.num_classes
    if value is dataclasses.MISSING:
      raise UserError(f"{kind} needs a value for its field {name!r}")
    _check_field(f"{kind}: {name}", value, known[name].type)
    if value is None:
      # A plain None could not be set from the command line.
      kind_of = str if name == "dtype" else _plain_type(known[name].type)
      if kind_of is not None:
        config[name] = config_dict.placeholder(kind_of)
    elif name == "dtype":
      config[name] = np.dtype(value).name
    elif isinstance(value, (bool, int, float, str, tuple)):
      config[name] = value
  return config


def _alternatives(annotation: Any) -> tuple[Any, ...]:
  union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  return typing.get_args(annotation) if union else (annotation,)


def _plain_type(annotation: Any) -> type | None:
  """The type that a command line can set: int of `int | None`; None for modules and functions."""
  for option in _alternatives(annotation):
    if typing.get_origin(option) is Literal:
      return type(typing.get_args(option)[0])
    plain = typing.get_origin(option) or option
    if plain in (bool, int, float, str, tuple):
      return plain
  return None


def _check_field(where: str, value: Any, annotation: Any) -> None:
  options = _alternatives(annotation)
  choices = [c for option in options if typing.get_origin(option) is Literal for c in typing.get_args(option)]
  if choices and value is not None and value not in choices and _plain_type(annotation) is type(value):
    known = ", ".join(map(repr, choices))
    raise UserError(f"{where} is {value!r}; expected one of {known}{_close(value, choices)}")
  for option in options:
    if typing.get_origin(option) is tuple and isinstance(value, tuple):
      lengths = typing.get_args(option)
      if Ellipsis not in lengths and len(value) != len(lengths):
        raise UserError(f"{where} is {value!r}; expected {len(lengths)} values")


def _close(value: Any, choices: Sequence[Any]) -> str:
  hint = overrides_lib.nearest(str(value), [str(c) for c in choices])
  return hint if "did you mean" in hint else ""


def make_preprocess(preprocess: ml_collections.ConfigDict) -> Preprocess:
  """The record that normalises images, in training as in evaluation."""
  return Preprocess(
    mean=tuple(preprocess.mean), std=tuple(preprocess.std), channel_order=preprocess.channel_order
  )


def load(
  spec: str,
  *,
  overrides: Sequence[tuple[str, str]] = (),
  ready: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> ml_collections.ConfigDict:
  """The config of `path/to/file.py:arg,arg` (see `config_file`), with `overrides` (dotted key, text) applied.

  `smoke` among the arguments shrinks any config (see `shrink`); the file sees the others.

  Args:
    spec: file and arguments.
    overrides: in the order in which they are applied.
    ready: called with the values as they were typed, before the file's `finish` looks into folders and
      weights: reading weights can start JAX's backend, before which the processes of a job have to be joined.

  Raises:
    UserError: no such file or argument, unknown key, wrong type.
  """
  module, args = config_file.read(spec)
  config = module.get_config(",".join(word for word in args if word != "smoke"))
  if "smoke" in args:
    shrink(config)
  config.lock()
  change(config, overrides)
  if ready is not None:
    ready(config)
  if hasattr(module, "finish"):
    module.finish(config, {key for key, _ in overrides})
  return config


def change(config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
  """`overrides.apply`, the model's first; what hangs on the model follows (see `follow`).

  Raises:
    UserError: unknown key, wrong type.
  """
  model = [change for change in overrides if change[0].startswith("model.")]
  before = config.model.encoder.get("output_stride")
  overrides_lib.apply(config, model)
  follow(config, before=None if "model.decoder.rates" in dict(model) else before)
  if "loss.weights.aux_logits" in dict(overrides) and config.model.get("auxiliary") is False:
    raise UserError(
      "config.loss.weights.aux_logits weighs the auxiliary head, which is off;"
      " set --config.model.auxiliary=true"
    )
  overrides_lib.apply(config, [change for change in overrides if change not in model])


def follow(config: ml_collections.ConfigDict, *, before: int | None = None) -> None:
  """Brings what hangs on the model up to date with it, in place; `change` calls it.

  - `loss.weights`: a map of the model that has no weight gets the published one (0.4 for "aux_logits", 1
    for each scale's own), and an auxiliary or scale map that the model does not give loses its.
  - `model.decoder.rates`: when they were the published ones at the output stride `before`, they become
    those at the present one.

  Args:
    config: of an experiment.
    before: output stride before it was changed; None leaves the rates alone.
  """
  model = config.model
  if model.arch not in models.SYSTEMS or name_of(config) != "segmentation":
    return  # nothing hangs on a classifier; where a model is of another task, `validate` has the sentence
  if before is not None and {"rates": model.decoder.get("rates")} == models.decoder_rates(model.arch, before):
    model.decoder.update(models.decoder_rates(model.arch, model.encoder.output_stride))
  maps = {"aux_logits": _AUX_WEIGHT} if "aux_decoder" in model_fields(config) else {}
  if tuple(model.scales) != (1.0,):
    maps |= {models.scale_map(scale): _SCALE_WEIGHT for scale in model.scales}
  weights = config.loss.weights
  with config.unlocked():
    for key in [key for key in weights if re.fullmatch(r"(aux|scale\d+)_logits", key)]:
      if key not in maps:
        del weights[key]
    weights.update({key: value for key, value in maps.items() if key not in weights})


def shrink(config: ml_collections.ConfigDict) -> None:
  """Makes any config small enough to run anywhere, in place: what `:smoke` does.

  Crop 64, batch 2, one block a stage, two steps, one device, and synthetic data of the same class count.
  """
  from jaxseg import data

  names = data.dataset_info(config.data).classes
  with config.unlocked():
    names = (_shrink_classification if name_of(config) == "classification" else _shrink_segmentation)(
      config, names
    )
    config.model.num_classes = len(names)
    for field in _DEPTH_FIELDS:
      if field in config.model.encoder:
        config.model.encoder[field] = (1,) * len(config.model.encoder[field])
    if "multi_grid" in config.model.encoder:  # one rate for each unit of the last stage
      config.model.encoder.multi_grid = config.model.encoder.multi_grid[:1]
    config.total_steps = 2
    config.batch_size = 2
    config.init_from = ""
    config.data.update(
      classes=names,
      train_split="train",
      eval_split="val",
      image_size=(_SMOKE_SIZE, _SMOKE_SIZE),
      crop_size=(_SMOKE_SIZE, _SMOKE_SIZE),
      num_train=8,
      num_val=3,  # odd, so that the last batch is padded
      workers=0,
    )
    config.optimizer.schedule.warmup_steps = min(config.optimizer.schedule.warmup_steps, 1)
    config.eval.update(every_steps=1, batch_size=2)
    config.checkpoint.every_steps = 1
    config.log.every_steps = 1
    config.mesh.update(data=-1, fsdp=1, spatial=1, devices=1)


def _shrink_segmentation(config: ml_collections.ConfigDict, names: tuple[str, ...]) -> tuple[str, ...]:
  from jaxseg.data import synthetic

  # Scenes need a few classes to draw; a config with fewer is shrunk to that many.
  names += tuple(f"extra{i}" for i in range(len(names), synthetic.MIN_CLASSES))
  if config.loss.class_weights:
    config.loss.class_weights += (1.0,) * (len(names) - len(config.loss.class_weights))
  config.data.update(name="synthetic", label_map=(), resize=())
  config.eval.update(resize=(), scales=(1.0,), flip=False)
  if config.eval.mode == "slide":
    config.eval.update(crop_size=(_SMOKE_SIZE * 3 // 4,) * 2, stride=(_SMOKE_SIZE // 2,) * 2)
  config.log.update(panel_every_steps=0, panel_images=2)
  return names


def _shrink_classification(config: ml_collections.ConfigDict, names: tuple[str, ...]) -> tuple[str, ...]:
  config.data.name = "synthetic_classes"
  # An epoch of the whole data set, after which the rate would change first.
  config.optimizer.schedule.every = 1
  return names


def resolved(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as plain values, references followed; what `config.json` holds."""
  return config.copy_and_resolve_references().to_dict()


def from_resolved(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The config that `resolved` wrote, read back from JSON: lists are tuples again, None has its type."""
  values = _tuples(dict(values))
  model = values.pop("model")
  config = ml_collections.ConfigDict(values)
  parts = {p: model.pop(p) for p in ("encoder", "decoder", "aux_decoder") if p in model}
  config.model = model_config(model.pop("arch"), num_classes=model.pop("num_classes"), **parts)
  config.model.update(model)
  if "align_corners" in config.get("loss", {}) and config.loss.align_corners is None:
    config.loss.align_corners = config_dict.placeholder(bool)  # JSON's null has no type to check values by
  config.lock()
  return config


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
