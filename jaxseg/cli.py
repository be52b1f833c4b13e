"""`jaxseg`: what is there, and what it is made of.

jaxseg list                    the models
jaxseg info MODEL [--params]   one model: parameters, fields and their defaults
jaxseg crf-search --workdir=DIR [--images=100]   the best CRF behind a network, on a validation split
jaxseg check-dataset --config=FILE               classes, sizes, bad files and a picture of the data
jaxseg prepare-dataset --config=FILE             writes the data as training reads it
jaxseg plan --config=FILE --topology=v5e:16x16   what a training step needs, before renting the chips
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxseg import catalog, data, models, plan
from jaxseg.console import print_line as say
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.macs import count_macs
from jaxseg.pretrained import published_names
from jaxseg.train import (
  card,
  crf_search,
  dataset_commands,
  distributed,
  experiment,
  overrides,
  validate,
  workdir,
)
from jaxseg.train import config as config_lib
from jaxseg.train.optimizer import parameter_groups

_IMAGE = (1, 64, 64, 3)
_MACS_AT = (512, 512)


def main(argv: Sequence[str] | None = None) -> None:
  """The console script; bad input ends in one sentence and exit code 2."""
  parser = argparse.ArgumentParser(prog="jaxseg", description="Semantic segmentation for JAX.")
  commands = parser.add_subparsers(dest="command", required=True)
  commands.add_parser("list", help="the models by name, with their parameters")
  info = commands.add_parser("info", help="one model: parameters, fields and their values")
  info.add_argument("model", help="name, config file or workdir")
  info.add_argument(
    "--num_classes", type=int, default=19, help="of a model given by name; default: %(default)s"
  )
  info.add_argument(
    "--params", action="store_true", help="path, shape, published name, rate and decay of each"
  )
  info.add_argument("--layout", help="whose published names --params shows: official, mmseg, ...")
  step = commands.add_parser("plan", help="memory, work and speed of a training step, compiled ahead of time")
  step.add_argument("--config", metavar="FILE[:ARG,ARG]", required=True, help="the experiment")
  step.add_argument(
    "--topology", required=True, help="v4, v5e, v5p or v6e with sizes, v5e:16x16; cpu, cpu:8, gpu"
  )
  step.add_argument(
    "--compiles", type=int, default=0, help="compilations to spend on the largest batch; 0 extrapolates"
  )
  step.add_argument("--dump", default="", metavar="FILE", help="write the optimised program's text there")
  search = commands.add_parser("crf-search", help="the best CRF behind a network, on a validation split")
  crf_search.add_flags(search)
  dataset_commands.add_flags(commands.add_parser("check-dataset", help="what a config's data hold"))
  dataset_commands.add_prepare_flags(
    commands.add_parser("prepare-dataset", help="write a config's data as training reads them")
  )
  changes, rest = overrides.split(sys.argv[1:] if argv is None else argv)
  flags = parser.parse_args(rest)
  if changes and flags.command not in ("plan", "crf-search", "check-dataset", "prepare-dataset"):
    parser.error(f"{flags.command} takes no {overrides.PREFIX}{changes[0][0]}")
  with distributed.exit_on_user_error("jaxseg"):
    if flags.command == "list":
      lines = listing()
    elif flags.command == "crf-search":
      lines = crf_search.command(flags, changes)
    elif flags.command == "check-dataset":
      lines = dataset_commands.check(flags, changes)
    elif flags.command == "prepare-dataset":
      lines = dataset_commands.prepare(flags, changes)
    elif flags.command == "plan":
      lines = training_plan(
        config_lib.load(flags.config, overrides=changes),
        flags.topology,
        compiles=flags.compiles,
        dump=flags.dump,
      )
    else:
      lines = model_info(flags.model, num_classes=flags.num_classes, params=flags.params, layout=flags.layout)
    say("\n".join(lines))


def listing() -> list[str]:
  """One line a model: name, and parts."""
  lines = [f"{name:<24} {s.encoder} + {s.decoder}" for name, s in sorted(models.SYSTEMS.items())]
  return lines + [f"{name:<24} encoder alone" for name in sorted(ENCODERS)]


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
    num_classes = config.model.num_classes or data.dataset_info(config.data).num_classes
    model, fields = config_lib.build_model(config, num_classes), config_lib.model_fields(config)
    name = config.model.arch
  else:
    model = models.create_model(name, num_classes=None if name in ENCODERS else num_classes)
    parts = [("encoder", ENCODERS[name], {})] if name in ENCODERS else config_lib.parts_of(name)
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


def training_plan(
  config: ml_collections.ConfigDict, topology: str, *, compiles: int = 0, dump: str = ""
) -> list[str]:
  """Lines about the config's training step on devices that need not be there; no data set is opened.

  Args:
    config: of an experiment.
    topology: see `jaxseg.plan.open_topology`.
    compiles: compilations that may be spent on the largest batch that fits.
    dump: file for the text of the optimised program.

  Raises:
    UserError: a config that cannot run, an unknown topology, a mesh or batch that does not divide (with
      the meshes that would).
  """
  validate.validate(config)
  opened = plan.open_topology(topology)
  mesh = experiment.make_mesh(config.mesh, devices=opened.devices)
  try:
    validate.validate_batches(config, mesh, keys=("batch_size",))
  except UserError as error:
    raise UserError(f"{error}; {_advice(config, mesh.devices.size)}") from None
  run = experiment.assemble(config, mesh)
  state = run.shapes
  parts = {"parameters": state.params, "optimizer": state.opt_state, "statistics": state.model_state}
  parts |= {} if state.ema is None else {"average": state.ema}
  return plan.plan_step(
    lambda batch_size: run.lower_step(batch_size=batch_size),
    opened,
    mesh,
    batch_size=config.batch_size,
    image=tuple(config.data.crop_size),
    state={name: plan.device_bytes(tree, mesh) for name, tree in parts.items()},
    about=card.rows_split(config, run.model, mesh) | _evaluation(config, mesh),
    unit=mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulate,
    compiles=compiles,
    dump=dump,
  )


def _evaluation(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> dict[str, str]:
  """A row where `train.py` would refuse the config for the batch of its evaluation, no part of the step."""
  try:
    validate.validate_batches(config, mesh, keys=("eval.batch_size",))
  except UserError as error:
    return {"evaluation": f"train.py will refuse {error}"}
  return {}


def _advice(config: ml_collections.ConfigDict, devices: int) -> str:
  """What would work where a config's batch cannot be spread over so many devices."""
  model = config_lib.build_model(
    config, validate.validate_classes(config, data.dataset_info(config.data).classes)
  )
  size = tuple(config.data.crop_size)
  return plan.advice(
    devices,
    config.batch_size,
    size[0],
    micro_batches=config.accumulate,
    whole_from=lambda spatial: models.first_whole_stage(model, size, spatial=spatial),
  )


def _config(name: str) -> ml_collections.ConfigDict | None:
  if name.partition(":")[0].endswith(".py"):
    return config_lib.load(name)
  return workdir.read_config(name) if workdir.is_workdir(name) else None


def _parameters(params: Any, config: ml_collections.ConfigDict | None, layout: str | None) -> list[str]:
  groups = None if config is None else parameter_groups(config.optimizer, params)
  if layout is None and config is not None and config.optimizer.names != "jaxseg":
    layout = config.optimizer.names
  names = {} if layout is None else published_names(params, layout)
  rows = []
  for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    row = [path, "x".join(map(str, leaf.shape))] + ([names[path]] if names else [])
    if groups is not None:
      decay = config.optimizer.weight_decay * groups[path].decay_mult
      row += [f"rate x{groups[path].lr_mult:g}", f"decay {decay:g}"]
    rows.append(row)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ["parameters:"] + [
    "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]


if __name__ == "__main__":
  main(sys.argv[1:])
