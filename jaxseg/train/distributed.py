"""Several processes as one run, on `jax.distributed` alone.

A process that is gone is JAX's matter: the others miss its heartbeat and end with JAX's message. Here are
the start, the comparison of what the processes were started with, and the end: an exception in one process
ends that process at once, so that the others do not wait for it.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

import jaxseg
from jaxseg import console
from jaxseg.errors import UserError

_FLAGS = {
  "coordinator": ("HOST:PORT", "of process 0, in a run of several processes without a launcher"),
  "num_processes": ("N", "how many processes the run has"),
  "process_id": ("I", "which of them this one is, from 0"),
}
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Keys of a config that may differ between the hosts of a run.
_OF_A_HOST = ("data.data_dir", "data.manual_dir", "data.dir", "data.workers", "compilation_cache", "hosts")
_SHOWN_DIFFERENCES = 4
_SEEN_SECONDS = 30.0  # that a network file system may take to show what another host has written
_LEAVING_SECONDS = 5.0  # that processes which end one after the other wait for each other


class RunEnded(RuntimeError):
  """A run that ends before its last step for a reason that the message gives; not a bug.

  Attributes:
    exit_code: with which a program ends.
  """

  exit_code = console.FAILED


class Preempted(RunEnded):
  """The run was told to go; the message says what is saved."""

  exit_code = console.PREEMPTED


def add_job_flags(parser: argparse.ArgumentParser) -> None:
  """The flags that `initialize` reads."""
  for name, (metavar, text) in _FLAGS.items():
    parser.add_argument(f"--{name}", metavar=metavar, help=text)


def initialize(flags: argparse.Namespace, config: ml_collections.ConfigDict) -> None:
  """Joins the other processes of the run, if there are any; before anything starts JAX's backend.

  The place of this process comes from the flags of `add_job_flags`, else from JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, else from a launcher that JAX knows (Cloud TPU, SLURM, Open MPI,
  Kubernetes). Without any of them nothing is opened. The coordinator listens on the given address only,
  unless JAX_COORDINATOR_BIND_ADDRESS says otherwise.

  Args:
    flags: of the program.
    config: whose `hosts` says how long to wait.

  Raises:
    UserError: only some of the flags or variables, values that cannot be, or a port that is taken.
  """
  hosts = config.get("hosts", {})
  waits = {
    name: hosts.get(f"{name}_timeout_seconds", seconds)
    for name, seconds in (("initialization", 120.0), ("heartbeat", 20.0))
  }
  for name, seconds in waits.items():
    if not 1 <= seconds < 2**31:
      raise UserError(f"config.hosts.{name}_timeout_seconds is {seconds}; expected at least 1 second")
  given = {f"--{name}": getattr(flags, name, None) for name in _FLAGS}
  if all(value is None for value in given.values()):
    given = {name: os.environ.get(name) or None for name in _VARIABLES}
    # The number of processes alone says nothing: an image may set it to 1.
    if given[_VARIABLES[0]] is None and given[_VARIABLES[2]] is None:
      given = {}
    elif not all(given.values()) and _has_launcher():
      given = {}  # JAX takes the rest from the launcher
  place = _place(given) if given else None
  if jax.distributed.is_initialized() or (place is None and (given or not _has_launcher())):
    return
  arguments = {}
  if place is not None:
    coordinator, count, index = place
    listen = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
    if index == 0:
      _check_free(listen)
    arguments = dict(
      coordinator_address=coordinator,
      num_processes=count,
      process_id=index,
      coordinator_bind_address=listen,
      cluster_detection_method="deactivate",
    )
  where = f"process {place[2]} of {place[1]} at {place[0]}" if place else "started by a launcher"
  seconds = waits["initialization"]
  late = (
    f"not all processes came within {seconds:g} s (this is {where}); start the others with the same command,"
    " let the coordinator's port through the firewall, or raise --config.hosts.initialization_timeout_seconds"
  )
  with _ends_after(seconds, late):
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(seconds) + 60,  # later than our sentence
      heartbeat_timeout_seconds=int(waits["heartbeat"]),
      shutdown_timeout_seconds=int(_LEAVING_SECONDS),
    )


def _has_launcher() -> bool:
  """Whether a launcher that JAX knows has started this process as one of several."""
  environ = os.environ
  if int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environ:
    return True
  if int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return True
  if "JOB_COMPLETION_INDEX" in environ and "KUBERNETES_SERVICE_HOST" in environ:
    return True
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms:
    return False
  # A Cloud TPU machine: the devices' files, and what GKE and the TPU runtime set.
  return "TPU_WORKER_HOSTNAMES" in environ or any(
    name.exists() for name in (epath.Path("/dev/accel0"), epath.Path("/dev/vfio/0"))
  )


def _place(given: Mapping[str, Any]) -> tuple[str, int, int] | None:
  """(coordinator, number of processes, index of this one); None for a single process."""
  names = list(given)
  missing = [name for name in names if given[name] is None]
  if missing:
    raise UserError(
      f"{', '.join(names[:-1])} and {names[-1]} belong together, and {' and '.join(missing)}"
      f" {'is' if len(missing) == 1 else 'are'} missing; give all three on every host, or none of them on a"
      " single one"
    )
  coordinator = str(given[names[0]])
  try:
    count, index = (int(given[name]) for name in names[1:])
  except ValueError:
    raise UserError(
      f"{names[1]} is {given[names[1]]!r} and {names[2]} is {given[names[2]]!r}; expected whole numbers"
    ) from None
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(f"{names[0]} is {coordinator!r}; expected HOST:PORT of process 0, like 10.0.0.1:8476")
  if count < 1:
    raise UserError(f"{names[1]} is {count}; expected at least 1")
  if not 0 <= index < count:
    raise UserError(f"{names[2]} is {index}; expected 0 to {count - 1}, one number for each of {count}")
  return (coordinator, count, index) if count > 1 else None


def _check_free(address: str) -> None:
  # A port that is taken ends JAX's coordination service with a segmentation fault.
  host, _, port = address.rpartition(":")
  try:
    family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind(where)
      probe.listen()
  except OSError as error:
    raise UserError(
      f"the coordinator cannot listen on {address} ({error.strerror or error}); give process 0 an address of"
      " its own host with a free port, or set JAX_COORDINATOR_BIND_ADDRESS to the one it should listen on"
    ) from None


def check_same(program: str, config: ml_collections.ConfigDict, **facts: Any) -> None:
  """Compares what all processes were started with; what may rightly differ by host is left out.

  Args:
    program: its name.
    config: resolved or not.
    facts: what else has to be the same, as plain values.

  Raises:
    UserError: on every process, naming the keys that differ, with both values.
  """
  if not is_distributed():
    return
  local = jax.local_device_count()
  if local * jax.process_count() != jax.device_count():
    raise UserError(
      f"the hosts have different numbers of devices: this one {local}, all {jax.process_count()} together"
      f" {jax.device_count()}; start the run on equal hosts"
    )
  values = flatten(config.copy_and_resolve_references().to_dict(), "config.")
  values = {k: v for k, v in values.items() if not k.startswith(tuple(f"config.{key}" for key in _OF_A_HOST))}
  values |= {"program": program, "jaxseg": jaxseg.__version__, "jax": jax.__version__}
  values |= {"kind of device": jax.local_devices()[0].device_kind}
  values |= {"number of processes": jax.process_count(), **facts}
  everyone = [json.loads(text) for text in gather(json.dumps(values, default=str, sort_keys=True))]
  for number, other in enumerate(everyone):
    if other != everyone[0]:
      raise UserError(
        f"hosts were started with different values: {_differences(everyone[0], other, number)}; give the same"
        " command, files and versions on every host"
      )


def gather(text: str) -> list[str]:
  """The text of every process, in their order; all of them call it at the same place of the program."""
  data = np.frombuffer(text.encode(), np.uint8)
  if not is_distributed():
    return [text]
  lengths = multihost_utils.process_allgather(np.array(len(data), np.int32)).ravel()
  padded = np.zeros(int(lengths.max()), np.uint8)
  padded[: len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], number: int) -> str:
  keys = [key for key in sorted(first.keys() | other.keys()) if first.get(key) != other.get(key)]
  texts = [
    f"{key} is {_shown(first, key)} on process 0 and {_shown(other, key)} on process {number}"
    for key in keys[:_SHOWN_DIFFERENCES]
  ]
  more = len(keys) - len(texts)
  return ", ".join(texts) + (f", and {more} more" if more else "")


def _shown(values: Mapping[str, Any], key: str) -> str:
  return repr(values[key]) if key in values else "missing"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} → {"a.b": 1}."""
  flat: dict[str, Any] = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def check_shared(folder: epath.PathLike) -> None:
  """Every process sees what process 0 writes in `folder`, which exists there and is writable.

  Raises:
    UserError: on every process, naming those that do not.
  """
  if not is_distributed():
    return
  first = jax.process_index() == 0
  probe = epath.Path(folder) / gather(f".shared-{uuid.uuid4().hex}")[0]
  if first:
    probe.write_text("every process of the run has to see this file")
  gather("probe written")
  deadline = time.monotonic() + _SEEN_SECONDS
  while not (seen := probe.exists()) and time.monotonic() < deadline:
    time.sleep(0.5)
  blind = [i for i, text in enumerate(gather(str(seen))) if text != "True"]
  if first:
    probe.unlink()
  if blind:
    raise UserError(
      f"workdir {str(folder)!r} of process 0 is not the one of process"
      f"{'es' * (len(blind) > 1)} {', '.join(map(str, blind))}: they do not see what it writes; choose a"
      " --workdir that all hosts share, on a bucket (gs://) or a network file system"
    )


def is_distributed() -> bool:
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first_process() -> bool:
  """Whether this process is the one that prints and writes."""
  return jax.process_index() == 0


@runtime_checkable
class StopRequest(Protocol):
  """What the loop asks at each step whether to save and go; `Preemption` is one."""

  def reached(self, step: int) -> bool:
    """Whether to save and go after `step`; the same answer in every process."""


class Preemption:
  """Notices SIGTERM; the loop asks `reached` at each step. For programs: it installs a handler.

  With several processes JAX listens, since `initialize`, and lets all of them stop at the same step.
  """

  def __init__(self):
    self._told = False
    if not jax.distributed.is_initialized():
      signal.signal(signal.SIGTERM, self._note)

  def _note(self, *_: Any) -> None:
    self._told = True

  def reached(self, step: int) -> bool:
    """Whether to save and go after `step`; every process asks at every step, and all get the same answer."""
    if is_distributed():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._told


@contextlib.contextmanager
def exit_on_user_error(program: str) -> Iterator[None]:
  """Runs a program: a `UserError` becomes `program: sentence` on stderr and exit code 2.

  `RunEnded` becomes its sentence and its code, Ctrl-C one line and code 130 at any time. Any other exception
  keeps its traceback and ends with code 1. One of several processes that fails ends at once (`os._exit`),
  with its message as the last on the screen, since exit handlers would wait for the other processes.
  """
  console.exit_at_interrupt(program)
  code, last_words = 0, ""
  try:
    yield
  except UserError as error:
    code, last_words = console.BAD_INPUT, f"{program}: {error}"
  except RunEnded as error:
    code, last_words = error.exit_code, f"{program}: {error}"
  except KeyboardInterrupt:
    code, last_words = console.INTERRUPTED, f"{program}: stopped; the same command goes on"
  except (SystemExit, Exception) as error:
    if not jax.distributed.is_initialized():
      raise
    if isinstance(error, SystemExit):
      code = error.code if isinstance(error.code, int) else console.FAILED
    else:
      code, last_words = console.FAILED, traceback.format_exc() + _after_a_failure(program)
  if not jax.distributed.is_initialized():
    if code:
      console.print_line(last_words, error=True)
      sys.exit(code)
    return
  if not code:
    multihost_utils.sync_global_devices("the end")
    jax.distributed.shutdown()
    return
  console.print_line(last_words, error=True)
  if jax.process_index() == 0:
    time.sleep(_LEAVING_SECONDS / 2)  # with this process goes the coordinator, and others may have a sentence
  _exit(code)


def _after_a_failure(program: str) -> str:
  return (
    f"{program}: process {jax.process_index()} of {jax.process_count()} ends here, and the others with it;"
    " the reason is above, or on the process that ended first"
  )


@contextlib.contextmanager
def _ends_after(seconds: float, sentence: str) -> Iterator[None]:
  """Ends the process with a sentence if its body takes longer."""

  def end() -> None:
    console.print_line(sentence, error=True)
    _exit(console.FAILED)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _exit(code: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(code)
