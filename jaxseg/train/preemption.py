"""Preemption: a run that is told to go (SIGTERM) finishes its step, saves it and says so.

In a job of several processes the notice of one is the notice of all: the runtime's preemption service
settles on a step that none of them has passed yet (`multihost_utils.reached_preemption_sync_point`).
A process that runs alone and has nothing to save, because it still compiles, or evaluates what is saved
already, goes at once. A second notice changes nothing, for launchers like to send it twice.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

from jaxseg.train.exits import RESTART, Restart

_STARTING = -1  # not known yet where the run goes on


class Preempted(Restart):
  """The run was told to go; the message says what is saved."""


class Preemption:
  """Listens for SIGTERM from entering to leaving the `with`; what handled it before does so again after.

  Only Python's main thread may listen; `train` called on another one is not told of the signal.
  """

  def __init__(self):
    self._told, self._over = False, False
    self._asked = 0
    self._saved: int | None = _STARTING  # the step, while nothing after it was taken
    self._listener: threading.Thread | None = None

  def __enter__(self) -> "Preemption":
    # In a job of several processes the runtime listens, since `jax.distributed.initialize`.
    main = threading.current_thread() is threading.main_thread()
    if jax.distributed.is_initialized() or not main:
      return self
    self._read, self._write = os.pipe()
    # Python runs its handlers between two instructions, so not while XLA compiles. faulthandler's is C
    # and writes into the pipe at once; what it calls next would end the process, were it not replaced.
    self._before = signal.signal(signal.SIGTERM, lambda *_: None)
    faulthandler.register(signal.SIGTERM, file=self._write, all_threads=False, chain=True)
    self._listener = threading.Thread(target=self._listen, name="preemption", daemon=True)
    self._listener.start()
    return self

  def __exit__(self, *_) -> None:
    if self._listener is None:
      return
    faulthandler.unregister(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)
    self._over = True
    os.write(self._write, b".")
    self._listener.join()
    os.close(self._write)
    os.close(self._read)
    self._listener = None

  def saved(self, step: int) -> None:
    """All that was done is on the disk, up to `step`: a notice finds nothing to wait for."""
    self._saved = step

  def unsaved(self) -> None:
    """A step was taken that is not saved: a notice waits for the next `reached`."""
    self._saved = None

  def reached(self) -> bool:
    """Whether to save and go now; every process asks equally often, and all get the same answer."""
    self._asked += 1
    if not jax.distributed.is_initialized():
      return self._told
    try:
      return multihost_utils.reached_preemption_sync_point(self._asked)
    except RuntimeError:  # the service is switched off (jax_enable_preemption_service)
      return False

  def _listen(self) -> None:
    while True:
      os.read(self._read, 65536)
      if self._over:
        return
      self._told = True
      step = self._saved
      if step is not None:
        # Nobody may be listening any more: a pipe that was closed must not keep the process from going.
        with contextlib.suppress(OSError, ValueError, AttributeError):
          print(sentence(step), file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError, AttributeError):
          sys.stdout.flush()
        os._exit(RESTART)  # as harmless as kill -9, which no restore and no save suffers from


def sentence(step: int) -> str:
  """What is said to the user when a run leaves, with all up to `step` saved."""
  if step == _STARTING:
    return "preempted while starting; nothing was lost; the same command goes on"
  done = f"at step {step}; saved" if step else "before the first step"
  return f"preempted {done}; the same command goes on"
