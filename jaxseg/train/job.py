"""Several processes as one job: joining, telling the others, and leaving when one is gone.

The engine is `jax.distributed`. Its coordination service keeps the few words that processes leave for each
other here, and misses the heartbeats of one that is gone. Whatever ends one process ends all of them, each
with a sentence: nothing waits for a process that will not come.

In a job of one process everything here does nothing.
"""

import contextlib
import ctypes
import functools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jaxseg.errors import UserError
from jaxseg.train import launch
from jaxseg.train.exits import BAD_INPUT, RESTART

INITIALIZATION_SECONDS = 120.0
HEARTBEAT_SECONDS = 20.0
_POLL_SECONDS = 1.0  # between looks for another process's last words
_ROLL_CALL_SECONDS = 3.0  # between looks at who is there
_GRACE_SECONDS = 2.0  # in which a process may find by itself what another has said
_SAVE_SECONDS = 8.0  # the same where that is a restart: this one may be at the end of a checkpoint still
_LEAVE_SECONDS = 10.0  # that a process which leaves waits for the others to do so
_STOP = "jaxseg/stop"
# What an error says that another process's end has caused: Gloo, NCCL, gRPC, the coordination service.
_LOST = re.compile(
  r"gloo|nccl|by peer|socket closed|heartbeat|coordination|barrier",
  re.IGNORECASE,
)
_STATUS = re.compile(r"[A-Z_]+: ")


class _Job:
  """The state of this process in its job."""

  def __init__(self, program: str, place: launch.Place):
    self.program, self.place = program, place
    self.tried, self.joined = False, False
    self.exit_code: int | None = None  # once this process leaves
    self.told: dict[str, Any] | None = None  # another process's last words
    self.alive = set(range(place.count))  # at the last roll call
    self.called = time.monotonic()  # when that was
    self.over = threading.Event()
    self.threads: list[threading.Thread] = []
    self.gathered = 0
    self.lock = threading.Lock()

  @property
  def client(self) -> Any:
    from jax._src import distributed  # the key-value store and the barriers have no public name

    return distributed.global_state.client


_job: _Job | None = None


def expect(program: str, flags: Mapping[str, str | None]) -> None:
  """Finds out whether this process is one of several (`launch.find`); `join` then connects them.

  Raises:
    UserError: wrong or partial flags or variables.
  """
  global _job
  place = launch.find(flags, timeout=INITIALIZATION_SECONDS)
  _job = None if place is None or jax.distributed.is_initialized() else _Job(program, place)


def join(
  *,
  initialization_timeout_seconds: float = INITIALIZATION_SECONDS,
  heartbeat_timeout_seconds: float = HEARTBEAT_SECONDS,
) -> None:
  """Joins the other processes of the job; before anything starts JAX's backend.

  Args:
    initialization_timeout_seconds: how long the others may take to come.
    heartbeat_timeout_seconds: without a sign of life after which a process counts as gone.

  Raises:
    UserError: the coordinator cannot be reached, or not all came.
  """
  job = _job
  if job is None or job.joined:
    return
  job.tried = True
  for name, value in (
    ("initialization_timeout_seconds", initialization_timeout_seconds),
    ("heartbeat_timeout_seconds", heartbeat_timeout_seconds),
  ):
    if value < 1:
      raise UserError(f"config.hosts.{name} is {value}; expected at least 1 second")
  deadline = time.monotonic() + initialization_timeout_seconds
  launch.reach(job.place, timeout=initialization_timeout_seconds)
  _connect(job, deadline - time.monotonic(), initialization_timeout_seconds, heartbeat_timeout_seconds)
  job.joined = True
  for name, look in (("last words", _listen), ("roll call", _call_roll)):
    thread = threading.Thread(target=look, args=(job,), name=name, daemon=True)
    thread.start()
    job.threads.append(thread)


def _connect(job: _Job, left: float, timeout: float, heartbeat: float) -> None:
  place = job.place
  outcome: list[BaseException | None] = []

  def initialize() -> None:
    try:
      with _reporting_client(job):
        jax.distributed.initialize(
          place.coordinator,
          place.count,
          place.index,
          cluster_detection_method="deactivate" if place.explicit else None,
          # JAX ends a process that waits longer, without a word that could be caught: here it is given up
          # first.
          initialization_timeout=int(timeout) + 60,
          heartbeat_timeout_seconds=max(int(heartbeat), 1),
        )
      outcome.append(None)
    except BaseException as error:  # handed to the caller's thread
      outcome.append(error)

  thread = threading.Thread(target=initialize, name="join", daemon=True)
  thread.start()
  thread.join(max(left, 1.0))
  if not outcome:
    raise UserError(
      f"not all {place.count} processes of the job came within {timeout:g} s (this is process {place.index};"
      f" the coordinator is {place.coordinator}); start the others too, each with a number of its own, or"
      " raise --config.hosts.initialization_timeout_seconds"
    )
  if outcome[0] is not None:
    reason = _first_line(outcome[0])
    reason = "the coordinator refuses it" if "bad_cast" in reason else reason
    raise UserError(
      f"process {place.index} of {place.count} cannot join the job at {place.coordinator}"
      f" ({reason}); give every process the same count and coordinator, and its own number"
    ) from outcome[0]


@contextlib.contextmanager
def _reporting_client(job: _Job) -> Iterator[None]:
  """Within it `jax.distributed.initialize` makes a client that ends in our sentence, not in XLA's abort.

  The client takes a function for this, which `initialize` has no argument for. jaxlib 0.10 cannot hand the
  function its C++ status and throws bad_cast instead, which ends in C++'s terminate handler: so that is ours.
  """
  from jax._src.lib import _jax

  make = getattr(_jax, "get_distributed_runtime_client", None)
  if make is None:
    yield
    return
  _catch_bad_cast(lambda: _lost(job))
  _jax.get_distributed_runtime_client = functools.partial(
    make, missed_heartbeat_callback=lambda *_: _lost(job)
  )
  try:
    yield
  finally:
    _jax.get_distributed_runtime_client = make


_handlers: list[Any] = []  # C keeps no reference to them


def _catch_bad_cast(then: Callable[[], None]) -> None:
  try:
    cxx = ctypes.CDLL("libstdc++.so.6")
    set_handler, current = cxx._ZSt13set_terminatePFvvE, cxx.__cxa_current_exception_type
  except (OSError, AttributeError):
    return  # another C++ library; there XLA aborts in its own words
  kind = ctypes.CFUNCTYPE(None)
  set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
  current.restype = ctypes.c_void_p

  def handler() -> None:
    info = current()
    # A type_info is its table of virtual functions, then the mangled name.
    name = ctypes.cast(info, ctypes.POINTER(ctypes.c_char_p))[1] if info else b""
    if name.endswith(b"bad_cast"):
      then()
    if before:
      kind(before)()

  _handlers.append(kind(handler))
  before = set_handler(ctypes.cast(_handlers[-1], ctypes.c_void_p))


def _listen(job: _Job) -> None:
  """Waits for another process's last words, and ends this one with them."""
  while not job.over.wait(_POLL_SECONDS):
    try:
      job.told = json.loads(job.client.key_value_try_get(_STOP))
    except Exception:  # nothing was said (NOT_FOUND), or the coordinator is gone, which `_lost` hears of
      continue
    if job.told["process"] == job.place.index:
      return
    if not job.over.wait(_SAVE_SECONDS if job.told["code"] == RESTART else _GRACE_SECONDS):
      _end(job, *_passed_on(job.told), tell=False)
    return


def _call_roll(job: _Job) -> None:
  """Knows who is there, so that the one who is gone can be named."""
  everyone = list(range(job.place.count))
  while not job.over.wait(_ROLL_CALL_SECONDS):
    try:
      job.alive = set(job.client.get_live_nodes(everyone))
      job.called = time.monotonic()
    except Exception:  # of an old jaxlib, or the coordinator is gone: nobody can be named
      return


def _passed_on(told: Mapping[str, Any]) -> tuple[int, str]:
  return told["code"], f"process {told['process']} stopped the job: {told['sentence']}"


def _lost(job: _Job) -> None:
  """Ends this process because another one is gone; called on a thread of XLA's."""
  if job.exit_code is not None:
    _quit(job.exit_code)
  if not job.joined:
    _end(
      job,
      BAD_INPUT,
      f"process {job.place.index} of {job.place.count} was turned away by the coordinator"
      f" {job.place.coordinator}, or the coordinator has ended; see its message",
      tell=False,
    )
  time.sleep(_POLL_SECONDS + 0.5)  # who left may have said why, and the roll call is about to return
  if job.told is not None and job.told["process"] != job.place.index:
    _end(job, *_passed_on(job.told), tell=False)
  _end(job, RESTART, _who_is_gone(job), tell=False)


def _who_is_gone(job: _Job, reason: str = "") -> str:
  place = job.place
  gone = sorted(set(range(place.count)) - job.alive)
  silent = time.monotonic() - job.called > 3 * _ROLL_CALL_SECONDS
  if place.index != 0 and not gone and (silent or not _answers(place.coordinator)):
    gone = [0]
  if place.count == 2 and not gone:
    gone = [1 - place.index]
  if gone == [place.index]:
    who = f"this process ({place.index} of {place.count}) was not heard of by the others and is"
  elif gone:
    who = f"process{'es' * (len(gone) > 1)} {', '.join(map(str, gone))} of {place.count}"
    who += " are" if len(gone) > 1 else " is"
  else:
    who = f"another of the {place.count} processes is"
  return (
    f"{who} gone{f' ({reason})' if reason else ''}: killed, preempted, stuck or cut off; the same command on"
    " every host goes on from the last checkpoint"
  )


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
  except OSError:
    return False
  return True


def at_good_end(close: Callable[[], None]) -> Callable[..., None]:
  """`close` for `ExitStack.push`; in a job it is left out after an error, as it would wait for the others."""
  return lambda kind, *_: close() if kind is None or current() is None else None


def caused_by_others(error: BaseException) -> bool:
  """Whether an error can be another process's end, rather than a fault of this one's."""
  if _job is None or not _job.joined:
    return False
  while error is not None:
    # XLA's errors are RuntimeErrors, or ValueErrors that begin with a status; what was made of one has it as
    # its cause.
    text = str(error)
    lost = _LOST.search(text) and "os_error_code" not in text  # TensorStore's, of a disk: with paths
    if lost and (isinstance(error, RuntimeError) or _STATUS.match(text)):
      return True
    error = error.__cause__ or error.__context__
  return False


def leave_because_of(error: BaseException) -> None:
  """Ends this process for an error `caused_by_others`: with the other's last words, or that it is gone."""
  job = _job
  deadline = time.monotonic() + _GRACE_SECONDS + _POLL_SECONDS
  while job.told is None and time.monotonic() < deadline:
    time.sleep(0.1)
  if job.told is not None:
    _end(job, *_passed_on(job.told), tell=False)
  _end(job, RESTART, _who_is_gone(job, _first_line(error)), tell=True)


def leave(code: int, sentence: str, *, say: bool = False) -> None:
  """Ends this process, which has said why (or `say`s it now), and tells the others.

  From whatever thread. Returns where the process is the only one.
  A process that has not joined yet does so first, so that the others need not wait for it.
  """
  job = _job
  if job is None:
    return
  if not job.tried:
    with contextlib.suppress(Exception):
      join()
  _end(job, code, sentence, tell=True, say=say)


def _end(job: _Job, code: int, sentence: str, *, tell: bool, say: bool = True) -> None:
  """The only way out of a job that did not come to its end; never returns."""
  with job.lock:
    first = job.exit_code is None
    job.exit_code = code if first else job.exit_code
  if not first:
    time.sleep(2 * _LEAVE_SECONDS)  # another thread is on its way out
  if say:
    # Not through sys.stderr, whose lock the interrupted thread may hold.
    with contextlib.suppress(OSError, ValueError):  # nobody reads it; the way out must not end here
      os.write(2, f"{job.program}: {sentence}\n".encode())
  job.over.set()
  if job.joined:
    _within(_LEAVE_SECONDS, functools.partial(_take_leave, job, code, sentence, tell))
  _quit(job.exit_code)


def _take_leave(job: _Job, code: int, sentence: str, tell: bool) -> None:
  if tell:
    words = {"process": job.place.index, "code": code, "sentence": sentence}
    with contextlib.suppress(Exception):  # another was first, or nobody listens any more
      job.client.key_value_set(_STOP, json.dumps(words))
  if code != RESTART:
    jax.distributed.shutdown()  # waits for the others, who are leaving too
  elif tell and job.place.index == 0:
    time.sleep(_POLL_SECONDS + _GRACE_SECONDS)  # with this process the words would be gone too


def _within(seconds: float, action: Callable[[], None]) -> None:
  """Runs `action` for at most so long; what it raises does not matter any more."""

  def run() -> None:
    with contextlib.suppress(Exception):
      action()

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)


def _quit(code: int) -> None:
  # Exit handlers would wait for devices, threads and processes that do not answer.
  _within(1.0, lambda: sys.stdout.flush())  # may be None, or closed
  os._exit(code)


def current() -> _Job | None:
  """The job that this process has joined, if any."""
  return _job if _job is not None and _job.joined else None


def finish() -> None:
  """Leaves a job whose every process has come to its end."""
  job = current()
  if job is None:
    return
  job.over.set()
  jax.distributed.shutdown()
  for thread in job.threads:
    thread.join(_LEAVE_SECONDS)


def _first_line(error: BaseException) -> str:
  line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
  return line if len(line) <= 160 else f"{line[:157]}..."
