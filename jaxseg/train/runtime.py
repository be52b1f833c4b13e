"""What surrounds a run: processes of a pod, and errors that read as a sentence."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

import jax

from jaxseg.train.guard import TrainingStopped

BAD_INPUT = 2  # exit code of a config, a data set or a workdir that cannot run
STOPPED = 1  # exit code of a run that had to stop (NaN)

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


@contextlib.contextmanager
def sentences(program: str) -> Iterator[None]:
  """Turns what a user can mend into `program: sentence` on stderr and an exit code, without traceback.

  A ValueError (or an OSError) that jaxseg itself or a config raised is such a sentence; one that comes
  out of a library is a bug, and keeps its traceback.
  """
  try:
    yield
  except TrainingStopped as error:
    _exit(program, error, STOPPED)
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
