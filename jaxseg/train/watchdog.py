"""A run whose steps have stopped finishing says so, leaves its stacks, and ends, so that it can be restarted.

A device that hangs, a collective that waits for a host which is gone, a file system that does not
answer: nothing raises then, and a job would hold its chips until somebody looks.
"""

import collections
import contextlib
import faulthandler
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from jaxseg.train.exits import RESTART

FOLDER = "hung"
# How long writing the stacks may take.
_WRITING_SECONDS = 20.0


class Watchdog:
  """Ends the process when no step has finished for `seconds`; a context, and silent outside of it.

  The clock runs from the first finished step on, so that its compilation is no hang, and stands still in
  `aside` (an evaluation, a save). It looks at the steps' results from a thread of its own, and does not
  wait for them.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    seconds: float | int,
    end: Callable[[int], None] = os._exit,
    process: int | None = None,
  ):
    """Starts nothing yet.

    Args:
      directory: the workdir; stacks go to its folder `hung`.
      seconds: without a finished step; 0 never ends a run.
      end: called with the exit code. `os._exit` by default: what waits at exit would hang as well.
      process: index of this process in the job; None asks JAX.
    """
    self._folder, self._seconds, self._end = epath.Path(directory) / FOLDER, seconds, end
    self._process = process
    self._steps: collections.deque[tuple[int, Any]] = collections.deque()
    self._last: int | None = None
    self._since: float | None = None
    self._aside = 0
    self._lock, self._stop = threading.Lock(), threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Watchdog":
    if self._seconds:
      self._process = jax.process_index() if self._process is None else self._process
      self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._stop.set()
    if self._thread is not None:
      self._thread.join()

  def dispatched(self, step: int, result: Any) -> None:
    """`step` is under way; `result` (an array, or whatever has `is_ready`) is ready when it is finished."""
    if self._thread is not None:
      with self._lock:
        self._steps.append((step, result))

  def started(self, step: int) -> None:
    """`step` is finished, and from now on the clock runs."""
    with self._lock:
      self._steps.clear()
      self._last, self._since = step, time.monotonic()

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """In here no step has to finish; afterwards the clock begins anew."""
    with self._lock:
      self._aside += 1
    try:
      yield
    finally:
      with self._lock:
        self._aside -= 1
        if self._since is not None:
          self._since = time.monotonic()

  def _watch(self) -> None:
    while not self._stop.wait(min(1.0, self._seconds / 4)):
      with self._lock:
        while self._steps and _is_ready(self._steps[0][1]):
          self._last, self._since = self._steps.popleft()[0], time.monotonic()
        waiting = self._since is not None and not self._aside
        over = waiting and time.monotonic() - self._since > self._seconds
      if over:
        self._bark()
        return

  def _bark(self) -> None:
    where = self._folder / f"step-{self._last + 1}-process-{self._process}.txt"
    # A thread's, which can be left behind: the file system may be what hangs.
    written: queue.Queue[bool] = queue.Queue()
    threading.Thread(target=_write_stacks, args=(where, written), daemon=True).start()
    try:
      whole = written.get(timeout=_WRITING_SECONDS)
    except queue.Empty:
      whole = False
    stacks = "the stacks of all threads " + ("are in" if whole else "follow, as they cannot be written to")
    # Past Python's buffers, whose locks a hanging thread may hold.
    os.write(
      2,
      f"\ntrain.py: step {self._last + 1} hangs: no step has finished for {self._seconds:g} s (process"
      f" {self._process}); {stacks} {where}. Exit code {RESTART}: the same command goes on from the last"
      " checkpoint; where steps do take that long, raise --config.hosts.step_timeout_seconds\n".encode(),
    )
    if not whole:
      faulthandler.dump_traceback(2, all_threads=True)
    self._end(RESTART)


def _is_ready(result: Any) -> bool:
  try:
    return result.is_ready()
  except RuntimeError:  # the step has failed, which the loop will say
    return True


def _write_stacks(where: epath.Path, written: queue.Queue) -> None:
  try:
    # Into a file of this machine first: faulthandler needs a descriptor, and a bucket has none.
    with tempfile.TemporaryFile() as file:
      faulthandler.dump_traceback(file, all_threads=True)
      file.seek(0)
      text = file.read().decode(errors="replace")
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(text)
  except Exception:  # whatever a bucket's client raises
    written.put(False)
  else:
    written.put(True)
