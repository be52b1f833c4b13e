"""The model's part of a config: one key for each Linen field of its encoder and decoders."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np
from ml_collections import config_dict

from jaxseg import catalog, models
from jaxseg.config import values
from jaxseg.config.keys import field_key, name_of
from jaxseg.config.parts import parts_of
from jaxseg.errors import UserError
from jaxseg.layers.atrous import check_output_stride
from jaxseg.types import Preprocess

# Weight in the loss of a map that a model gives beside "logits": what was published for it.
_AUX_WEIGHT = 0.4
_SCALE_WEIGHT = 1.0


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
    config.scales = (1.0,)
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
    config.model.arch,
    num_classes=num_classes,
    scales=tuple(config.model.get("scales", ())) or None,
    multi_label=config.data.get("multi_label", False),
    **parts,
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
    if part == "encoder" and config.data.get("channels", 3) != 3:
      parts[part]["in_channels"] = config.data.channels
  return parts


def check_fields(model: ml_collections.ConfigDict) -> None:
  """Values of the model's fields against their annotations: choices, tuple lengths.

  Raises:
    UserError: naming the key, the value and what is allowed.
  """
  for part, entry, _ in parts_of(model.arch):
    for name, field in catalog.fields(entry).items():
      if name in model.get(part, ()):
        key = field_key(name, field.type)
        values.check(f"config.model.{part}.{name}", model[part][name], key.annotation, key.allowed)
  if "output_stride" in model.encoder:
    try:
      system = models.SYSTEMS.get(model.arch)
      check_output_stride(system.encoder if system else model.arch, model.encoder.output_stride)
    except ValueError as error:
      raise UserError(f"config.model.encoder.{error}") from None


def _fields_config(entry: Any, given: Mapping[str, Any], *, kind: str) -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  known = catalog.fields(entry)
  for name in given:
    if name not in known:
      raise UserError(f"{kind} has no field {name!r}{values.nearest(name, known)}")
  for name, value in (catalog.defaults(entry) | dict(given)).items():
    if name in ("num_classes", "in_channels"):
      continue  # config.model.num_classes, config.data.channels
    if value is dataclasses.MISSING:
      raise UserError(f"{kind} needs a value for its field {name!r}")
    value = np.dtype(value).name if name == "dtype" and value is not None else value
    key = field_key(name, known[name].type)
    if values.plain_type(key.annotation) is not None:
      values.check(f"{kind}: {name}", value, key.annotation, key.allowed)
    if value is None:
      # A plain None could not be set from the command line.
      kind_of = values.plain_type(key.annotation)
      if kind_of is not None:
        config[name] = config_dict.placeholder(kind_of)
    elif isinstance(value, (bool, int, float, str, tuple)):
      config[name] = value
  return config


def make_preprocess(preprocess: ml_collections.ConfigDict) -> Preprocess:
  """The record that normalises images, in training as in evaluation."""
  return Preprocess(
    mean=tuple(preprocess.mean), std=tuple(preprocess.std), channel_order=preprocess.channel_order
  )


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
