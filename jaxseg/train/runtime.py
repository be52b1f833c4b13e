"""What surrounds a run: processes of a pod, and errors that read as a sentence."""

import argparse
import contextlib
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

import jaxseg
from jaxseg import sharding
from jaxseg.config.files import resolved
from jaxseg.config.keys import get, leaves
from jaxseg.config.values import nearest
from jaxseg.errors import UserError
from jaxseg.train import hosts, job
from jaxseg.train.exits import BAD_INPUT, RESTART, STOPPED, Restart
from jaxseg.train.guard import TrainingStopped
from jaxseg.train.logging import say

# Keys of a config that may differ between the hosts of a job.
_OF_A_HOST = ("data.data_dir", "data.manual_dir", "data.dir", "data.workers", "compilation_cache")

# Flags of every program that may run as several processes.
_JOB_FLAGS = {
  "coordinator": ("HOST:PORT", "of process 0, in a job of several processes without a launcher"),
  "num_processes": ("N", "how many processes the job has"),
  "process_id": ("I", "which of them this one is, from 0"),
}


def add_job_flags(parser: argparse.ArgumentParser) -> None:
  """The flags that `expect_processes` reads."""
  for name, (metavar, text) in _JOB_FLAGS.items():
    parser.add_argument(f"--{name}", metavar=metavar, help=text)


def expect_processes(program: str, argv: Sequence[str]) -> None:
  """Finds out whether this process is one of several, from flags or a launcher, and connects nothing yet.

  Goes before `parse_flags`: what is wrong with the other flags of this process ends the others too.

  Recognises what `jax.distributed` does (Cloud TPU, SLURM, Open MPI), JAX_COORDINATOR_ADDRESS with
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, and the flags of `add_job_flags`, which go before.

  Raises:
    UserError: only some of them, or values that cannot be.
  """
  if {"-h", "--help"} & set(argv):
    return  # help needs no launcher
  parser = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
  add_job_flags(parser)
  job.expect(program, vars(parser.parse_known_args(argv)[0]))


def start_processes(config: ml_collections.ConfigDict) -> None:
  """Joins the other processes of the job, when there are any; before anything starts JAX's backend.

  Args:
    config: of which `hosts` says how long to wait; a run from before there was one waits as by default.

  Raises:
    UserError: the others cannot be reached or do not come.
  """
  waits = config.get("hosts", {})
  known = ("initialization_timeout_seconds", "heartbeat_timeout_seconds")
  job.join(**{name: waits[name] for name in known if name in waits})


def end_at_sigterm() -> None:
  """SIGTERM ends this process at once, for a program that has nothing to save; the others find it gone.

  Goes after `start_processes`: what joins the job lets the signal only be noted, for `preemption.py`.
  """
  signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_processes(program: str, config: ml_collections.ConfigDict, **facts: Any) -> None:
  """All processes of the job run the same program with the same config, on as many devices.

  What may rightly differ by host is not compared: where the data lie, and how many threads read them.

  Args:
    program: its name.
    config: resolved or not.
    facts: what else has to be the same, for plain values.

  Raises:
    UserError: on every process, naming what differs and how.
  """
  if not job.current():
    return
  values = resolved(config)
  keys = set(leaves(config)) - set(_OF_A_HOST)
  facts |= {"number of processes": job.current().place.count}
  facts |= {"program": program, "jaxseg": jaxseg.__version__, "jax": jax.__version__}
  facts |= {f"config.{key}": get(values, key) for key in keys if not key.startswith("hosts.")}
  hosts.check_same(facts)
  # In a second round: asking for devices starts the backends of all processes together.
  hosts.check_same(
    {
      "number of local devices": jax.local_device_count(),
      "kind of device": jax.local_devices()[0].device_kind,
    }
  )


def is_first_process() -> bool:
  """Whether this process is the one that prints and writes."""
  return jax.process_index() == 0


def make_mesh(mesh: ml_collections.ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of `config.mesh` over `devices` (JAX's by default); its `devices=n` takes only the first n."""
  devices = list(jax.devices() if devices is None else devices)
  if not 0 <= mesh.devices <= len(devices):
    raise UserError(f"config.mesh.devices is {mesh.devices}, and there are {len(devices)}; 0 takes all")
  if mesh.devices and jax.process_count() > 1:
    raise UserError(
      f"config.mesh.devices is {mesh.devices}, but a job of several hosts uses all; set it to 0"
    )
  try:
    return sharding.make_mesh(
      data=mesh.data, fsdp=mesh.fsdp, spatial=mesh.spatial, devices=devices[: mesh.devices or None]
    )
  except ValueError as error:
    raise UserError(f"config.mesh: {error}") from None


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str], *, required: Sequence[str] = ()):
  """The flags of a program.

  Raises:
    UserError: a flag that the program does not have (with the nearest), or a missing one.
  """
  try:
    flags, unknown = parser.parse_known_args(argv)
  except SystemExit as left:  # argparse has said why, or has shown its help
    if left.code:
      job.leave(BAD_INPUT, "its flags cannot be read")
    raise
  if unknown:
    flag = unknown[0].split("=", 1)[0]
    raise UserError(f"there is no flag {flag}{nearest(flag, [f'--{name}' for name in vars(flags)])}")
  for name in required:
    if getattr(flags, name) is None:
      raise UserError(f"--{name} is missing; {parser.prog} --help shows what it takes")
  return flags


@contextlib.contextmanager
def sentences(program: str) -> Iterator[None]:
  """Turns what a user can mend into `program: sentence` on stderr and an exit code, without traceback.

  Only a `UserError` is such a sentence; anything else is a bug, and keeps its traceback. In a job of several
  processes the others are told, and end too; an error that another process's end has caused is the sentence
  of that.
  """
  try:
    yield
    hosts.gather("the end")
    job.finish()
  except TrainingStopped as error:
    _exit(program, error, STOPPED)
  except Restart as error:
    _exit(program, error, RESTART)
  except KeyboardInterrupt:
    say(f"\n{program}: stopped; the same command goes on from the last checkpoint", error=True)
    job.leave(130, "stopped from the keyboard")
    sys.exit(130)
  except Exception as error:
    end_job(error)
    if _is_sentence(error):
      _exit(program, error, BAD_INPUT)
    raise


def end_job(error: Exception) -> None:
  """Ends a job of several processes for what went wrong in this one, as `sentences` does, from any thread.

  Returns where there is no such job.
  """
  if not job.current():
    return
  if job.caused_by_others(error):
    job.leave_because_of(error)
  if _is_sentence(error):
    job.leave(BAD_INPUT, str(error), say=True)
  if job.current().exit_code is None:  # else what ends the job is why this went wrong
    say("".join(traceback.format_exception(error)), error=True)
  job.leave(STOPPED, f"{type(error).__name__}: {error}")


def _is_sentence(error: Exception) -> bool:
  return isinstance(error, UserError)


def _exit(program: str, error: Exception, code: int) -> None:
  say(f"{program}: {error}", error=True)
  job.leave(code, str(error))
  sys.exit(code)
