"""Batches of this host → global arrays on the devices, a few ahead of the step that takes them."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from jaxseg.sharding import to_global
from jaxseg.types import Batch

# What a thread leaves behind for the reader.
_END = object()


class DeviceFeed(Iterator[tuple[list[str], dict[str, jax.Array]]]):
  """See `prefetch_to_devices`.

  Attributes:
    wait: seconds that `next` waited for a batch so far, over all calls.
  """

  def __init__(self, batches: Iterable[Batch], mesh: Mesh, *, ahead: int):
    self.wait = 0.0
    self._batches, self._mesh = batches, mesh
    self._places = threading.Semaphore(ahead)
    self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._work, daemon=True, name="device-feed")
    self._thread.start()

  def __iter__(self) -> "DeviceFeed":
    return self

  def __next__(self) -> tuple[list[str], dict[str, jax.Array]]:
    start = time.perf_counter()
    item = self._ready.get()
    self.wait += time.perf_counter() - start
    if item is _END or isinstance(item, BaseException):
      self._ready.put(_END)  # for whoever asks again
      raise StopIteration if item is _END else item
    self._places.release()
    return item

  def close(self) -> None:
    """Ends the thread, and the worker processes of `batches` where it has any."""
    self._stop.set()
    self._places.release()
    self._ready.put(_END)
    self._thread.join(timeout=60.0)
    close = getattr(self._batches, "close", None)
    if close is not None:
      close()

  def __enter__(self) -> "DeviceFeed":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _work(self) -> None:
    try:
      batches = iter(self._batches)
      while True:
        self._places.acquire()  # a place first: no more than `ahead` batches take memory on the devices
        if self._stop.is_set():
          return
        batch = next(batches, _END)
        if batch is _END:
          self._ready.put(_END)
          return
        self._ready.put(([str(name) for name in batch.get("id", ())], to_global(batch, self._mesh)))
    except BaseException as error:
      self._ready.put(error)


def prefetch_to_devices(batches: Iterable[Batch], mesh: Mesh, *, ahead: int = 2) -> DeviceFeed:
  """An iterator over (names of this host's examples, global arrays), kept `ahead` batches on the devices.

  One thread takes `batches`, which are this host's rows (`jaxseg.sharding.rows_to_read`), and lays them
  out as `jaxseg.sharding.to_global` does, while the devices work. Labels travel as they are (uint8) and
  become int32 where they are used. `feed.wait` is the time that the reader had to wait; an exception of
  `batches` is raised by `next`. Close it (or use it in a `with`) to end the thread.

  Args:
    batches: such as `train_batches` gives.
    mesh: over the devices of all processes.
    ahead: batches on the devices beside those that the reader holds; at least 1.
  """
  if ahead < 1:
    raise ValueError(f"ahead is {ahead}; expected at least 1")
  return DeviceFeed(batches, mesh, ahead=ahead)
