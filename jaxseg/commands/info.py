"""One model: its parts with their output, parameters, MACs and memory; fields and their values.

  jaxseg info segformer_b0 --size=512x512
  jaxseg info runs/mine --params

MODEL is a name of `jaxseg list`, a config file or a workdir. MACs are multiply-accumulates of convolutions
and matrix products for one image, padded taps included. Memory is that of float32 parameters, and of the
largest array that a part makes of one image before a compiler fuses anything. `--params` lists each parameter
and how it is trained.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxseg import catalog, lazy, models
from jaxseg.commands.flags import parse_size
from jaxseg.config.parts import parts_of
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError, printable
from jaxseg.macs import Part, count_by_part, natural

_IMAGE = (1, 64, 64)
_MIB = 1 << 20


def add_flags(parser: argparse.ArgumentParser) -> None:
  """MODEL, --num_classes, --params, --size, --layout."""
  parser.add_argument("model", help="name, config file or workdir")
  parser.add_argument(
    "--num_classes", type=int, default=19, help="of a model given by name; default: %(default)s"
  )
  parser.add_argument(
    "--params", action="store_true", help="path, shape, published name, rate and decay of each"
  )
  parser.add_argument("--size", metavar="HxW", default="512x512", help="of an image; default: %(default)s")
  parser.add_argument("--layout", help="whose published names --params shows: official, mmseg, ...")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Lines about the model that the flags name."""
  del changes
  if flags.num_classes < 1:
    raise UserError(f"--num_classes is {flags.num_classes}; expected at least 1")
  return model_info(
    flags.model,
    num_classes=flags.num_classes,
    params=flags.params,
    layout=flags.layout,
    size=parse_size(flags.size, "--size"),
  )


def model_info(
  name: str,
  *,
  num_classes: int = 19,
  params: bool = False,
  layout: str | None = None,
  size: tuple[int, int] = (512, 512),
) -> list[str]:
  """Lines about a model: a table of its parts, every field with its value, and each parameter.

  Args:
    name: a model, a config file, or a workdir.
    num_classes: of a model given by name.
    params: a line for each parameter.
    layout: whose names of the parameters to show.
    size: rows and columns of an image.

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
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), np.zeros((*_IMAGE, models.channels_of(model)), np.float32), train=False
    )
  )
  parts = count_by_part(model, size, variables=shapes)
  total = sum(parts.values(), Part())
  lines = [
    f"{name}: {total.parameters:,} parameters"
    + ("" if name in ENCODERS else f" for {num_classes} classes")
    + f", {total.macs / 1e9:.4g} GMACs at {size[0]}x{size[1]}"
  ]
  lines += ["", *_table(parts, size), ""]
  for part, values in fields.items():
    offered = part == "aux_decoder" and getattr(model, part, None) is None
    lines.append(f"{part}{' (offered, off)' if offered else ''}:")
    lines += [f"  {field} = {value!r}" for field, value in values.items() if field != "num_classes"]
  return lines + (_parameters(shapes["params"], config, layout) if params else [])


def _table(parts: dict[str, Part], size: tuple[int, int]) -> list[str]:
  """Rows of the parts, sums of encoder and decoder, and of all."""
  groups: dict[str, list[str]] = {}
  for name in parts:
    group = name.split("/")[0]
    groups.setdefault(group if any(other.startswith(f"{group}/") for other in parts) else "", []).append(name)
  rows = []
  everything = sum(parts.values(), Part())

  def add(label: str, part: Part) -> None:
    shape = part.output
    rows.append(
      (
        label,
        f"{shape[2]:,} x {shape[0]}x{shape[1]}" if shape else "",
        f"1/{round(size[0] / shape[0])}" if shape else "",
        f"{part.parameters:,}" if part.parameters else "",
        _number(part.macs / 1e9, 3),
        f"{part.macs / everything.macs:.1%}" if part.macs else "",
        _number(part.parameters * 4 / _MIB, 2),
        _number(part.largest / _MIB, 1),
      )
    )

  for group, names in groups.items():
    if group:
      own = parts.get(group, Part())
      inner = [name for name in names if name != group]
      add(group, sum((parts[name] for name in inner), own))
      for name in inner if own.macs or len(inner) > 1 else []:
        add(f"  {name.removeprefix(group + '/')}", parts[name])
      if own.macs:
        add("  (between them)", dataclasses.replace(own, output=None))
    else:
      for name in names:
        add(name, parts[name])
  add("all", everything)
  head = ("part", "output", "stride", "parameters", "GMACs", "share", "params MiB", "largest MiB")
  widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
  lines = []
  for row in [head, *rows]:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
    lines.append("  ".join(cells).rstrip())
  rule = "-" * max(map(len, lines))
  return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _number(value: float, digits: int) -> str:
  """Rounded; nothing for 0, and what would round to 0 as less than the last digit."""
  least = 10.0**-digits
  return "" if not value else f"{value:.{digits}f}" if value >= least / 2 else f"<{least:.{digits}f}"


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
  leaves = {
    jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  for path, leaf in sorted(leaves.items(), key=lambda item: natural(item[0])):
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
