"""What surrounds a run: processes of a pod, and errors that read as a sentence."""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import ml_collections
from jax.sharding import Mesh

from jaxseg import sharding
from jaxseg.train.guard import TrainingStopped
from jaxseg.train.overrides import ConfigError, nearest

BAD_INPUT = 2  # exit code of a config, a data set or a workdir that cannot run
STOPPED = 1  # exit code of a run that had to stop (NaN)
# EX_TEMPFAIL: stopped from outside (preempted, lost host, hung step); the same command goes on.
RESTART = 75


class Restart(RuntimeError):
  """Stopped for a reason outside the run; the message names it. The same command goes on: exit code 75."""


# Launchers that say so in the environment; Cloud TPU says it in its metadata.
_LAUNCHERS = (
  "JAX_COORDINATOR_ADDRESS",
  "OMPI_COMM_WORLD_SIZE",
  "SLURM_NTASKS",
  "MEGASCALE_COORDINATOR_ADDRESS",
)


def start_processes() -> None:
  """Joins the other processes of the job, when there are any: the same command runs on every host.

  Recognises Cloud TPU, SLURM and Open MPI (`jax.distributed` reads rank and address from them), and
  `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` for everything else.
  """
  if jax.distributed.is_initialized() or not (_launched() or _on_tpu()):
    return
  count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
  jax.distributed.initialize(
    num_processes=int(count) if count else None, process_id=int(index) if index else None
  )


def _launched() -> bool:
  sizes = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
  return any(name in os.environ and (name not in sizes or os.environ[name] != "1") for name in _LAUNCHERS)


def _on_tpu() -> bool:
  platforms = os.environ.get("JAX_PLATFORMS", "tpu")
  return "tpu" in platforms and any(pathlib.Path("/dev").glob("accel[0-9]*"))


def is_first_process() -> bool:
  """Whether this process is the one that prints and writes."""
  return jax.process_index() == 0


def make_mesh(mesh: ml_collections.ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of `config.mesh` over `devices` (JAX's by default); its `devices=n` takes only the first n."""
  devices = list(jax.devices() if devices is None else devices)
  if mesh.devices > len(devices):
    raise ConfigError(f"config.mesh.devices is {mesh.devices}, and there are {len(devices)}; 0 takes all")
  if mesh.devices and jax.process_count() > 1:
    raise ConfigError(
      f"config.mesh.devices is {mesh.devices}, but a job of several hosts uses all; set it to 0"
    )
  try:
    return sharding.make_mesh(
      data=mesh.data, fsdp=mesh.fsdp, spatial=mesh.spatial, devices=devices[: mesh.devices or None]
    )
  except ValueError as error:
    raise ConfigError(f"config.mesh: {error}") from None


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str], *, required: Sequence[str] = ()):
  """The flags of a program.

  Raises:
    ConfigError: a flag that the program does not have (with the nearest), or a missing one.
  """
  flags, unknown = parser.parse_known_args(argv)
  if unknown:
    flag = unknown[0].split("=", 1)[0]
    raise ConfigError(f"there is no flag {flag}{nearest(flag, [f'--{name}' for name in vars(flags)])}")
  for name in required:
    if getattr(flags, name) is None:
      raise ConfigError(f"--{name} is missing; {parser.prog} --help shows what it takes")
  return flags


@contextlib.contextmanager
def sentences(program: str) -> Iterator[None]:
  """Turns what a user can mend into `program: sentence` on stderr and an exit code, without traceback.

  A ValueError (or an OSError) that jaxseg itself or a config raised is such a sentence; one that comes
  out of a library is a bug, and keeps its traceback.
  """
  try:
    yield
  except BrokenPipeError:  # `jaxseg info x | head`: the reader has what it wanted
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except TrainingStopped as error:
    _exit(program, error, STOPPED)
  except Restart as error:
    _exit(program, error, RESTART)
  except (ValueError, OSError) as error:
    if not _raised_by_us(error):
      raise
    _exit(program, error, BAD_INPUT)
  except KeyboardInterrupt:
    print(f"\n{program}: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
    sys.exit(130)


def _raised_by_us(error: Exception) -> bool:
  trace = error.__traceback__
  while trace.tb_next is not None:
    trace = trace.tb_next
  module = trace.tb_frame.f_globals.get("__name__", "")
  return module.split(".")[0] in ("jaxseg", "configs", "__main__")


def _exit(program: str, error: Exception, code: int) -> None:
  print(f"{program}: {error}", file=sys.stderr)
  sys.exit(code)
