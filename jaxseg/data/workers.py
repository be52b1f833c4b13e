"""Batches made in worker processes, through Grain.

Which batch a process makes is a matter of its number alone, so that batches are equal to the bit whatever
the number of workers. A worker is a fresh Python (spawned, not forked: a fork of a process in which JAX
runs can hang), which receives the data set pickled. It never starts a JAX backend, and it ends with the
process that started it, however that one ends.
"""

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from jaxseg.data.source import DataError
from jaxseg.types import Batch

AUTO = -1  # one worker a core
# Each holds some 300 MB of imported modules and two batches; beyond this many, memory goes before time does.
MOST_AUTOMATIC = 32
MOST = 512

# Images of some megabytes are freed and allocated all the time: from the heap, which keeps its pages. glibc
# by itself gives them back, and touching fresh ones is then up to a third of a worker's time.
_GLIBC_TUNABLES = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=134217728"  # 32, 128 MiB
_SHARED_MEMORY = "/dev/shm"
_NEVER = 2**62  # bytes: no array is as large


def worker_count(workers: int) -> int:
  """How many processes `config.data.workers` asks for: -1 is one for each core, 0 none.

  Raises:
    DataError: another negative number, or more than any machine has.
  """
  if workers == AUTO:
    return min(_cores(), MOST_AUTOMATIC)
  if not 0 <= workers <= MOST:
    raise DataError(
      f"data.workers is {workers}; expected -1 (a worker process for each core), 0 (none: batches are made in"
      f" this process), or a number up to {MOST}"
    )
  return int(workers)


def _cores() -> int:
  """Those that this process may use, which a scheduler may have limited."""
  allowed = getattr(os, "sched_getaffinity", None)
  return len(allowed(0)) if allowed else os.cpu_count() or 1


def iterate(batches: grain.MapDataset, workers: int, *, batch_bytes: int = 0) -> Iterator[Batch]:
  """The elements of `batches` in order, made by `worker_count(workers)` processes, or in this one.

  The iterator has a method `close`, which ends the processes.

  Args:
    batches: whose elements are whole batches; it has to pickle.
    workers: see `worker_count`.
    batch_bytes: size of one batch, by which is decided whether shared memory suffices to pass them.

  Raises:
    DataError: as `worker_count`; and in a program that starts itself again in each worker.
  """
  count = worker_count(workers)
  in_order = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  if not count:
    return iter(in_order)
  if multiprocessing.current_process().daemon:
    raise DataError(
      "a worker process came to a place where batches are read: it runs the program's file again, so put"
      ' what the program does below `if __name__ == "__main__":`, or set data.workers to 0'
    )
  if not flags.FLAGS.is_parsed():
    # Grain reads flags of its own; in a program without absl's command line they have their defaults.
    flags.FLAGS.mark_as_parsed()
  if not _fits_shared_memory(3 * count * batch_bytes):
    options = grain.experimental.DatasetOptions(min_shm_size=_NEVER)
    in_order = grain.experimental.WithOptionsIterDataset(in_order, options)
  options = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=1)
  return _FromWorkers(iter(in_order.mp_prefetch(options, worker_init_fn=_start_worker)))


class _FromWorkers(Iterator[Batch]):
  """Grain's iterator, closed with this one or at the end of the program, and batches in memory of their own.

  A batch that still lies in shared memory when Python ends leaves it behind, with a traceback.
  """

  def __init__(self, batches: grain.DatasetIterator):
    self._held, self._started = [batches], False
    self.close = weakref.finalize(self, _close, self._held)

  def __next__(self) -> Batch:
    if not self._held:
      raise ValueError("the batches are closed")
    with contextlib.nullcontext() if self._started else _heap_of_workers():
      batch = next(self._held[0])  # the first one starts the processes
    self._started = True
    return {name: np.array(x) for name, x in batch.items()}


@contextlib.contextmanager
def _heap_of_workers() -> Iterator[None]:
  """Processes started inside of it keep freed memory; one's own GLIBC_TUNABLES stand. Only glibc reads it."""
  if "GLIBC_TUNABLES" in os.environ:
    yield
    return
  os.environ["GLIBC_TUNABLES"] = _GLIBC_TUNABLES
  try:
    yield
  finally:
    del os.environ["GLIBC_TUNABLES"]


def _close(held: list[grain.DatasetIterator]) -> None:
  """Closes and forgets: Grain's iterators must not live until Python takes its modules apart."""
  while held:
    held.pop().close()
  gc.collect()


def _fits_shared_memory(needed: int) -> bool:
  """Whether batches can be passed through shared memory, of which a container often has 64 MB only.

  Without, they go through pipes: slower, but a full /dev/shm ends a process with a bus error.
  """
  try:
    return shutil.disk_usage(_SHARED_MEMORY).free > needed
  except OSError:
    return True  # another system, whose limits are others


def _start_worker(index: int, count: int) -> None:
  """Called in a worker before anything else."""
  del index, count
  # An accelerator belongs to one process.
  os.environ["JAX_PLATFORMS"] = "cpu"
  # Ctrl-C and a scheduler's SIGTERM reach all processes of a job; the main one decides what they mean.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()
  try:
    import cv2
  except ImportError:
    return
  cv2.setNumThreads(1)  # there is a process for each core already


def _end_with_parent() -> None:
  """Grain's workers wait for a reader for ever; one that was killed never comes."""
  multiprocessing.parent_process().join()
  os._exit(1)
