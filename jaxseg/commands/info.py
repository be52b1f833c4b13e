"""One model: parameters, fields and their values; with --params each parameter and how it is trained."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxseg import catalog, lazy, models
from jaxseg.config.parts import parts_of
from jaxseg.console import printable
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.macs import count_macs

_IMAGE = (1, 64, 64, 3)
_MACS_AT = (512, 512)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """MODEL, --num_classes, --params, --layout."""
  parser.add_argument("model", help="name, config file or workdir")
  parser.add_argument(
    "--num_classes", type=int, default=19, help="of a model given by name; default: %(default)s"
  )
  parser.add_argument(
    "--params", action="store_true", help="path, shape, published name, rate and decay of each"
  )
  parser.add_argument("--layout", help="whose published names --params shows: official, mmseg, ...")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Lines about the model that the flags name."""
  del changes
  if flags.num_classes < 1:
    raise UserError(f"--num_classes is {flags.num_classes}; expected at least 1")
  return model_info(flags.model, num_classes=flags.num_classes, params=flags.params, layout=flags.layout)


def model_info(
  name: str, *, num_classes: int = 19, params: bool = False, layout: str | None = None
) -> list[str]:
  """Lines about a model: its parameter count, every field with its value, and each parameter.

  Args:
    name: a model, a config file, or a workdir.
    num_classes: of a model given by name.
    params: a line for each parameter.
    layout: whose names of the parameters to show.

  Raises:
    UserError: no such model (the nearest is named), config or layout.
  """
  config = _config(name)
  if config is not None:
    made = lazy.load("jaxseg.config.fields")
    lazy.load("jaxseg.config.validate").validate(config)
    num_classes = config.model.num_classes or lazy.load("jaxseg.data").dataset_info(config.data).num_classes
    model, fields = made.build_model(config, num_classes), made.model_fields(config)
    name = config.model.arch
  else:
    model = models.create_model(name, num_classes=None if name in ENCODERS else num_classes)
    parts = [("encoder", ENCODERS[name], {})] if name in ENCODERS else parts_of(name)
    fields = {part: catalog.defaults(entry) | dict(published) for part, entry, published in parts}
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros(_IMAGE, np.float32), train=False))
  total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"]))
  lines = [f"{name}: {total:,} parameters" + ("" if name in ENCODERS else f" for {num_classes} classes")]
  lines.append(f"{count_macs(model, _MACS_AT) / 1e9:.4g} GMACs at {_MACS_AT[0]}x{_MACS_AT[1]}")
  for part, values in fields.items():
    offered = part == "aux_decoder" and getattr(model, part, None) is None
    lines.append(f"{part}{' (offered, off)' if offered else ''}:")
    lines += [f"  {field} = {value!r}" for field, value in values.items() if field != "num_classes"]
  return lines + (_parameters(shapes["params"], config, layout) if params else [])


def _config(name: str) -> Any:
  """The config that `name` means, when it is one: what needs ml_collections is loaded only then."""
  if name in models.list_models():
    return None
  if name.partition(":")[0].endswith((".py", ".json")):
    return lazy.load("jaxseg.config.files").load(name)
  if pathlib.Path(name).is_dir() or "://" in name:
    return lazy.load("jaxseg.config.record").read_config(name)
  files = lazy.load("jaxseg.config.files") if ":" in name else None
  return files.load(name) if files else None


def _parameters(params: Any, config: Any, layout: str | None) -> list[str]:
  groups = (
    None if config is None else lazy.load("jaxseg.train.optimizer").parameter_groups(config.optimizer, params)
  )
  if layout is None and config is not None and config.optimizer.names != "jaxseg":
    layout = config.optimizer.names
  names = {} if layout is None else lazy.load("jaxseg.pretrained").published_names(params, layout)
  rows = []
  for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    row = [printable(path), "x".join(map(str, leaf.shape))] + ([names[path]] if names else [])
    if groups is not None:
      decay = config.optimizer.weight_decay * groups[path].decay_mult
      row += [f"rate x{groups[path].lr_mult:g}", f"decay {decay:g}"]
    rows.append(row)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ["parameters:"] + [
    "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
