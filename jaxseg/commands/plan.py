"""Memory, work and speed of a training step, compiled ahead of time for chips that need not be there.

jaxseg plan --config=segformer_ade20k:b0 --topology=v5e:16x16
"""

import argparse
from collections.abc import Sequence

import ml_collections

from jaxseg import config as config_lib
from jaxseg import data, models, plan
from jaxseg.commands import outputs
from jaxseg.config import validate
from jaxseg.config.card import rows_split
from jaxseg.errors import UserError
from jaxseg.train.experiment import assemble, make_mesh


def add_flags(parser: argparse.ArgumentParser) -> None:
  """--config, --topology, --compiles, --dump."""
  parser.add_argument("--config", metavar="FILE[:ARG,ARG]", required=True, help="the experiment")
  parser.add_argument(
    "--topology",
    required=True,
    help="v4, v5e, v5p, v6e or tpu7x with sizes, v5e:16x16, or an accelerator's name, v5litepod-256;"
    " cpu, cpu:8, gpu",
  )
  parser.add_argument(
    "--compiles", type=int, default=0, help="compilations to spend on the largest batch; 0 extrapolates"
  )
  parser.add_argument("--dump", default="", metavar="FILE", help="write the optimised program's text there")
  parser.add_argument(
    "--top", type=int, default=0, metavar="N", help="list the N instructions that move most bytes"
  )


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Lines about the step."""
  if flags.dump:
    outputs.try_file(flags.dump, flag="--dump")
  config = config_lib.load(flags.config, overrides=changes)
  return training_plan(config, flags.topology, compiles=flags.compiles, dump=flags.dump, top=flags.top)


def training_plan(
  config: ml_collections.ConfigDict, topology: str, *, compiles: int = 0, dump: str = "", top: int = 0
) -> list[str]:
  """Lines about the config's training step on devices that need not be there; no data set is opened.

  Args:
    config: of an experiment.
    topology: see `jaxseg.plan.open_topology`.
    compiles: compilations that may be spent on the largest batch that fits.
    dump: file for the text of the optimised program.
    top: how many of the instructions that move most to list.

  Raises:
    UserError: a config that cannot run, an unknown topology, a mesh or batch that does not divide (with
      the meshes that would).
  """
  validate.validate(config)
  opened = plan.open_topology(topology)
  mesh = make_mesh(config.mesh, devices=opened.devices)
  try:
    validate.validate_batches(config, mesh)
  except UserError as error:
    raise UserError(f"{error}; {_advice(config, mesh.devices.size)}") from None
  run = assemble(config, mesh)
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
    about=rows_split(config, run.model, mesh),
    unit=mesh.shape["data"] * mesh.shape["fsdp"] * config.accumulate,
    compiles=compiles,
    dump=dump,
    top=top,
  )


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
