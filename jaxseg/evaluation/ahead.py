"""A jitted function whose next shapes are compiled in a thread while earlier ones run."""

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxseg.sharding import batch_shardings

# (number of the shape, of how many) of a compilation that the caller waits for.
Waiting = Callable[[int, int], None]


class AheadOfTime:
  """`function`, compiled once for each combination of shapes, dtypes and shardings of its arguments.

  Args:
    function: a result of `jax.jit`, without static arguments.
    mesh: under which it is traced; None for none.
  """

  def __init__(self, function: Any, *, mesh: Mesh | None = None):
    self._function, self._mesh = function, mesh
    self._compiled: dict[Hashable, concurrent.futures.Future] = {}
    self._number: dict[Hashable, int] = {}
    self._lock = threading.Lock()
    self.waiting: Waiting | None = None

  def compile_ahead(self, calls: Sequence[tuple[Any, ...]]) -> None:
    """Starts compiling for the arguments of `calls`, one after the other; `jax.ShapeDtypeStruct`s will do."""
    work = []
    with self._lock:
      self._number = {}
      for number, arguments in enumerate(calls):
        key = _key(arguments)
        self._number.setdefault(key, number + 1)
        if key not in self._compiled:
          self._compiled[key] = concurrent.futures.Future()
          work.append((self._compiled[key], arguments))
    if work:
      # A daemon: a program that ends does not wait for what nobody will run.
      threading.Thread(target=self._compile_all, args=(work,), daemon=True, name="compile-ahead").start()

  def __call__(self, *arguments: Any) -> Any:
    key = _key(arguments)
    with self._lock:
      future = self._compiled.get(key)
      if here := future is None:
        future = self._compiled[key] = concurrent.futures.Future()
    if here:
      self._compile(future, arguments)
    elif not future.done() and self.waiting is not None and key in self._number:
      self.waiting(self._number[key], len(self._number))
    return future.result()(*arguments)

  def _compile_all(self, work: list[tuple[concurrent.futures.Future, tuple[Any, ...]]]) -> None:
    for future, arguments in work:
      self._compile(future, arguments)

  def _compile(self, future: concurrent.futures.Future, arguments: tuple[Any, ...]) -> None:
    try:
      with jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext():
        future.set_result(self._function.lower(*arguments).compile())
    except BaseException as error:
      future.set_exception(error)  # raised by the call that needs it


def shapes_on_mesh(batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a global batch, laid out as `jaxseg.sharding.to_global` does."""
  shardings = batch_shardings(batch, mesh)
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in batch.items()}


def _key(arguments: tuple[Any, ...]) -> Hashable:
  leaves, structure = jax.tree.flatten(arguments)
  return structure, tuple(map(_kind, leaves))


def _kind(leaf: Any) -> Hashable:
  if isinstance(leaf, (bool, int, float, complex)):
    return type(leaf)  # weakly typed
  return (
    np.shape(leaf),
    np.dtype(leaf.dtype),
    getattr(leaf, "sharding", None),
    getattr(leaf, "weak_type", False),
  )
