"""Reading a checkpoint, and telling whether it is what was saved.

Items are read by Orbax's handlers and not by its manager, whose barriers would leave the other processes
of a run waiting where one of them finds a damaged file.
"""

import contextlib
import functools
import gc
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxseg import bucket
from jaxseg.console import print_line
from jaxseg.errors import UserError

ARRAYS = ("variables", "optimizer")
RECORD = "record"
_SHOWN_DIFFERENCES = 3
_SHOWN_REASON = 160  # characters
_STACKED_ELEMENTS = 1 << 18  # of a leaf, at most; a thousand such would be a gigabyte
_LATE_SECONDS = 0.25  # in which reads that are under way end when one has failed


class Damaged(Exception):
  """A checkpoint that cannot be what was saved; the message is the reason."""


@runtime_checkable
class State(Protocol):
  """What is saved of a train state; everything else it may hold is not."""

  step: Any
  params: Any
  model_state: Any
  opt_state: Any

  def replace(self, **changes: Any) -> "State": ...


def restore_variables(directory: Any, *, step: int | Literal["latest"] = "latest") -> dict[str, Any]:
  """The variables of `restore_step` alone."""
  return restore_step(directory, step=step)[1]


def restore_step(directory: Any, *, step: int | Literal["latest"] = "latest") -> tuple[int, dict[str, Any]]:
  """The number of a checkpoint, and its {"params": ..., "batch_stats": ..., ...} as NumPy arrays.

  Reads only, and nothing of the optimizer: safe beside a run that is writing there. Of the latest, a
  damaged one is passed over for the one before, which is said on stderr.

  Args:
    directory: what `Checkpoints` was given.
    step: "latest" or a number. The weights of the best evaluation are in the workdir's folder `best`.

  Raises:
    UserError: there is no such checkpoint, or none that is undamaged.
  """
  directory = make_path(directory)
  if not directory.is_dir():
    raise UserError(
      f"there is no directory {directory}; give the checkpoints directory of a train.py workdir"
    )
  steps = sorted(ocp.utils.checkpoint_steps(directory))
  order = steps[::-1] if step == "latest" else [resolve(steps, directory, step)]

  def read(number: int) -> Any:
    path = directory / str(number)
    with _noticing_damage(path):
      handler = ocp.PyTreeCheckpointHandler()
      as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path / "variables").tree
      )
      tree = handler.restore(path / "variables", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    _check_record(path, {"variables": tree})
    return tree

  found, tree = first_undamaged(order, directory, read)
  return found, {"params": tree["params"], **tree["model_state"]}


def sums_of(trees: Mapping[str, Any]) -> dict[str, int]:
  """Path → a sum of the bits of every leaf that tells another order of its elements, too.

  One compiled call on the devices where the arrays are. Integers modulo 2^32: the sum does not depend on how
  an array is spread over devices. All processes of a run call it.
  """
  flat = jax.tree_util.tree_flatten_with_path(trees)[0]
  sums = np.asarray(jax.device_get(_device_sums([leaf for _, leaf in flat])))
  return {_path_of(path): int(value) for (path, _), value in zip(flat, sums, strict=True)}


@jax.jit
def _device_sums(leaves: list[Any]) -> jax.Array:
  # Of a thousand leaves most are small and of few shapes. Those are summed together: what is compiled
  # before a preempted run can save is then tens of sums.
  groups: dict[Any, list[int]] = {}
  for i, leaf in enumerate(leaves):
    alone = i if leaf.size > _STACKED_ELEMENTS else None
    groups.setdefault((leaf.shape, leaf.dtype, alone), []).append(i)
  sums = [
    jax.vmap(_bits_sum)(jnp.stack([jnp.asarray(leaves[i]) for i in group])) for group in groups.values()
  ]
  order = np.argsort(np.concatenate(list(groups.values())))
  return jnp.concatenate(sums)[order]


def _bits_sum(x: jax.Array) -> jax.Array:
  x = jnp.asarray(x)
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"u{x.dtype.itemsize}")).astype(jnp.uint32)
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):  # the index into the flat array, whatever the layout on devices
    position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  # MurmurHash3's finalizer of the word and its place: one changed word always changes it.
  mixed = words + position * jnp.uint32(0x9E3779B9)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def make_path(directory: Any) -> epath.Path:
  path = epath.Path(directory)
  bucket.reach(path)
  # Orbax refuses relative paths; resolving gs://bucket/x would break it.
  return path if bucket.is_remote(path) else path.expanduser().resolve()


def resolve(steps: list[int], directory: epath.Path, step: int | str | None) -> int:
  if not steps:
    raise UserError(f"there is no finished checkpoint in {directory}")
  if step is None or step == "latest":
    return steps[-1]
  if step not in steps:
    raise UserError(f"there is no checkpoint {step!r} in {directory}; it has steps {steps} and 'latest'")
  return step


def first_undamaged(
  steps: Iterable[int], directory: epath.Path, read: Callable[[int], Any]
) -> tuple[int, Any]:
  """(step, what `read` gives) of the first step that is not damaged; says which were passed over, and why."""
  damaged: list[str] = []
  for step in steps:
    try:
      value = read(step)
    except Damaged as error:
      damaged.append(f"{step} ({error})")
      continue
    if damaged and jax.process_index() == 0:
      print_line(
        f"in {directory} these checkpoints are damaged: {', '.join(damaged)}; {step} is taken instead",
        error=True,
      )
    return step, value
  if not damaged:
    raise UserError(f"there is no finished checkpoint in {directory}")
  raise UserError(
    f"every checkpoint in {directory} is damaged: {', '.join(damaged)}; nothing was changed there, so bring"
    " back a copy of one, or start anew in another workdir"
  )


@contextlib.contextmanager
def _noticing_damage(path: epath.Path) -> Iterator[None]:
  """Readers of damaged files fail in every way; it is no damage where the place itself cannot be read."""
  try:
    with quiet():
      yield
  except (Damaged, UserError, MemoryError):
    raise
  except Exception as error:
    if not _can_be_read(path):
      raise
    reason = " ".join(str(error).split()) or type(error).__name__
    raise Damaged(reason if len(reason) < _SHOWN_REASON else f"{reason[:_SHOWN_REASON]}...") from None


def _can_be_read(path: epath.Path) -> bool:
  """Whether every file below is there to be read, whatever is in it."""
  try:
    if not path.is_dir():
      path.read_bytes()
      return True
    return all(_can_be_read(inner) for inner in path.iterdir())
  except FileNotFoundError:
    return True
  except Exception:  # of permissions; of a network or a bucket's client, which raise what they like
    return False


@functools.cache
def tell_once() -> None:
  """Keeps back the tracebacks of saves that fail in the background, whose error `check` and `wait` raise.

  On a full disk every array fails by itself, some as late as the process ends: Orbax logs one error, asyncio
  those that nobody waits for, Python warns of writes that never began, and TensorStore reports to
  `sys.unraisablehook` that the loop which it would tell is closed.
  """

  def keep(record: logging.LogRecord) -> bool:
    return record.exc_info is None or "orbax" not in f"{record.pathname} {record.getMessage()}"

  def report(problem: Any) -> None:
    if not (problem.object is None and str(problem.exc_value) == "Event loop is closed"):
      hook(problem)

  hook, sys.unraisablehook = sys.unraisablehook, report
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(keep)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps back what Orbax logs about errors that it also raises, and what other reads report after one.

  Where one array of many cannot be read or written, the others end a moment later without anybody to hear.
  """
  logger, level, hook = logging.getLogger("absl"), logging.getLogger("absl").level, sys.unraisablehook
  logger.setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda _: None
  try:
    yield
  except Exception as error:
    cause: BaseException | None = error
    while cause is not None:  # their frames hold the other reads
      traceback.clear_frames(cause.__traceback__)
      cause = cause.__cause__ or cause.__context__
    time.sleep(_LATE_SECONDS)
    gc.collect()
    raise
  finally:
    sys.unraisablehook = hook
    logger.setLevel(level)


def _check_record(path: epath.Path, trees: Mapping[str, Any]) -> None:
  """Compares the checkpoint with what it says of itself.

  Raises:
    Damaged: another step's, other values, or no record.
  """
  try:
    record = ocp.JsonCheckpointHandler().restore(path / RECORD)
    step, sums = int(record["step"]), dict(record["sums"])
  except Exception as error:  # missing, no JSON, another structure
    raise Damaged(f"its record cannot be read: {type(error).__name__}") from None
  if step != int(path.name):
    raise Damaged(f"it is the checkpoint of step {step}, under another name")
  wrong = [name for name, value in sums_of(trees).items() if sums.get(name) != value]
  if wrong:
    raise Damaged(f"checksum of {wrong[0]} does not match")


def read_state(state_like: State, directory: epath.Path, step: int) -> State:
  path = directory / str(step)
  wanted = items(state_like)
  with _noticing_damage(path):
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ARRAYS}
    _check_same({name: handlers[name].metadata(path / name).tree for name in ARRAYS}, wanted, path)
    trees = {
      name: handlers[name].restore(
        path / name,
        args=ocp.args.PyTreeRestore(
          item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
        ),
      )
      for name, tree in wanted.items()
    }
  _check_record(path, trees)
  optimizer, variables = trees["optimizer"], trees["variables"]
  leaves, structure = jax.tree_util.tree_flatten_with_path(state_like.opt_state)
  params, average = variables["params"], {}
  if getattr(state_like, "ema", None) is not None:
    params, average = optimizer["raw_params"], {"ema": params}
  return state_like.replace(
    **average,
    step=optimizer["step"],
    params=params,
    model_state=variables["model_state"],
    opt_state=jax.tree.unflatten(structure, [optimizer["opt_state"][key(path)] for path, _ in leaves]),
  )


def items(state: State) -> dict[str, Any]:
  """Item → tree of arrays."""
  # Optimizer states are named tuples of any depth; by path they need no class to be read back.
  leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
  optimizer = {"step": state.step, "opt_state": {key(path): leaf for path, leaf in leaves}}
  params = getattr(state, "ema", None)
  if params is None:
    params = state.params
  else:
    optimizer["raw_params"] = state.params
  return {"variables": {"params": params, "model_state": state.model_state}, "optimizer": optimizer}


def _check_same(saved: Any, wanted: Any, path: epath.Path) -> None:
  """Compares paths, shapes and types.

  Raises:
    UserError: the first differences.
  """
  there, here = _shapes(saved), _shapes(wanted)
  differences = [f"{name} is missing in the checkpoint" for name in here if name not in there]
  differences += [f"{name} is only in the checkpoint" for name in there if name not in here]
  differences += [
    f"{name}: checkpoint {there[name]}, model {here[name]}"
    for name in here
    if name in there and there[name] != here[name]
  ]
  if not differences:
    return
  more = len(differences) - _SHOWN_DIFFERENCES
  shown = "; ".join(differences[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
  raise UserError(
    f"checkpoint {path.name} in {path.parent} is of another model or optimizer: {shown};"
    " use a new workdir, or the config that this one was made with"
  )


def _shapes(tree: Any) -> dict[str, str]:
  """Path → "float32(3, 3, 32)" of every leaf; items' own names are left out of the path."""
  return {
    _path_of(path): f"{np.dtype(x.dtype).name}{tuple(x.shape)}"
    for item in ARRAYS
    for path, x in jax.tree_util.tree_flatten_with_path(tree[item])[0]
  }


def _path_of(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def key(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")
