"""Which process of a job this one is, and whether the others can be reached.

A launcher says so in the environment (Cloud TPU, SLURM, Open MPI, Kubernetes: JAX's own detection), and for
everything else flags do, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Where nothing says
so, no connection is opened.
"""

import dataclasses
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from jaxseg.errors import UserError

FLAGS = ("coordinator", "num_processes", "process_id")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_RETRY_SECONDS = 0.5
_TRY_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Place:
  """A process's place in a job of several.

  Attributes:
    coordinator: "HOST:PORT" of process 0, where the others meet.
    count: how many processes the job has.
    index: this one's number, from 0.
    said_by: where it was read, for messages.
    explicit: given by flags; a launcher is then not asked for anything.
  """

  coordinator: str
  count: int
  index: int
  said_by: str
  explicit: bool = False


def find(flags: Mapping[str, str | None], *, timeout: float) -> Place | None:
  """The place of this process; None where it is the only one.

  Args:
    flags: `FLAGS` → the text given for each, or None.
    timeout: seconds that a launcher's coordinator may take until its name is known.

  Raises:
    UserError: only some of the flags or variables, values that cannot be, a launcher that cannot be asked.
  """
  given = {f"--{name}": flags.get(name) for name in FLAGS}
  if any(value is not None for value in given.values()):
    return _place(given, said_by="--coordinator", explicit=True)
  given = {name: os.environ.get(name) or None for name in VARIABLES}
  if all(given.values()):
    return _place(given, said_by=VARIABLES[0])
  asked = _ask_launcher(timeout, coordinator=given[VARIABLES[0]])
  if asked is not None:
    name, values = asked
    merged = {key: given[key] or value for key, value in zip(VARIABLES, values, strict=True)}
    return _place(merged, said_by=name)
  # The number of processes alone says nothing: an image may set it to 1.
  return _place(given, said_by=VARIABLES[0]) if given[VARIABLES[0]] or given[VARIABLES[2]] else None


def _place(given: Mapping[str, Any], *, said_by: str, explicit: bool = False) -> Place | None:
  names = list(given)
  missing = [name for name in names if given[name] is None]
  if missing:
    raise UserError(
      f"{', '.join(names[:-1])} and {names[-1]} belong together, and {' and '.join(missing)}"
      f" {'is' if len(missing) == 1 else 'are'} missing; give all three on every host, or none of them on a"
      " single one"
    )
  coordinator = str(given[names[0]])
  count, index = (_integer(name, given[name]) for name in names[1:])
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(f"{names[0]} is {coordinator!r}; expected HOST:PORT of process 0, like 10.0.0.1:8476")
  if count < 1:
    raise UserError(f"{names[1]} is {count}; expected at least 1")
  if not 0 <= index < count:
    raise UserError(f"{names[2]} is {index}; expected 0 to {count - 1}, one number for each of {count}")
  return Place(coordinator, count, index, said_by, explicit) if count > 1 else None


def _integer(name: str, value: Any) -> int:
  try:
    return int(value)
  except ValueError:
    raise UserError(f"{name} is {value!r}; expected a whole number") from None


def _ask_launcher(timeout: float, *, coordinator: str | None) -> tuple[str, tuple[Any, Any, Any]] | None:
  """(launcher, (coordinator, count, index)) of a job of several processes."""
  cluster = _cluster()
  if cluster is None:
    # Open MPI 5 no longer says where its first process is.
    count, index = (os.environ.get(f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK"))
    return None if count in (None, "1") else ("Open MPI", (None, count, index))
  name = cluster.__name__.removesuffix("Cluster")
  try:
    count = cluster.get_process_count()
    if count == 1:
      return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    coordinator = coordinator or cluster.get_coordinator_address(
      timeout_secs=timeout, override_coordinator_port=port
    )
    return name, (coordinator, count, cluster.get_process_id())
  except Exception as error:  # whatever a launcher's metadata or its client may raise
    raise UserError(
      f"the launcher ({name}) does not say which process of the job this is"
      f" ({type(error).__name__}: {error}); give --coordinator, --num_processes and --process_id"
    ) from error


def _cluster() -> Any:
  """The launcher that started this process, as JAX knows it; None where there is none."""
  from jax._src import (
    clusters,
  )  # the list that `jax.distributed.initialize` goes through; it has no public name

  platforms = os.environ.get("JAX_PLATFORMS", "")
  for cluster in clusters.ClusterEnv._cluster_types:
    kind = cluster.__name__
    if cluster.opt_in_only_method:
      continue
    if "Tpu" in kind and platforms and "tpu" not in platforms:
      continue  # a TPU machine, on whose CPU this run is asked to stay
    if kind.startswith("K8s") and "JOB_COMPLETION_INDEX" not in os.environ:
      continue  # a pod that belongs to no indexed job, such as a notebook
    if cluster.is_env_present():
      return cluster
  return None


def reach(place: Place, *, timeout: float) -> None:
  """Waits until the coordinator listens; as process 0, checks that it can.

  Raises:
    UserError: it cannot be reached within `timeout` seconds, or its port is taken.
  """
  host, _, port = place.coordinator.rpartition(":")
  if place.index == 0:
    _check_free(
      place, int(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", place.coordinator).rpartition(":")[2])
    )
    return
  deadline = time.monotonic() + timeout
  while True:
    left = deadline - time.monotonic()
    try:
      socket.create_connection(
        (host.strip("[]"), int(port)), timeout=max(min(left, _TRY_SECONDS), 0.1)
      ).close()
      return
    except OSError as error:
      reason = error.strerror or str(error)
    if time.monotonic() + _RETRY_SECONDS >= deadline:
      raise UserError(
        f"process {place.index} of {place.count} cannot reach the coordinator {place.coordinator} ({reason};"
        f" tried for {timeout:g} s); start process 0 there, let its port through the firewall, or correct"
        f" {place.said_by}"
      )
    time.sleep(_RETRY_SECONDS)


def _check_free(place: Place, port: int) -> None:
  # An occupied port ends the coordination service with a segmentation fault (jaxlib 0.10).
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  with socket.socket(family, socket.SOCK_STREAM) as probe:
    if family == socket.AF_INET6:
      probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # As the service does: connections of an earlier run that are still closing are no obstacle.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(("", port))
      probe.listen()
    except OSError as error:
      raise UserError(
        f"the coordinator cannot listen on port {port} ({error.strerror}); end the program that has it, or"
        f" choose another port in {place.said_by}"
      ) from None
