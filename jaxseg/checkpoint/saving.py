"""`Checkpoints`: what a run saves, which of it is kept, and where it goes on."""

import contextlib
import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jaxseg import bucket
from jaxseg.checkpoint import reading
from jaxseg.checkpoint.reading import Damaged
from jaxseg.checkpoint.sums import sums_of
from jaxseg.errors import UserError

# Deleting takes many files' time: a run killed in the middle of it must not leave half a checkpoint.
_DELETED = "deleted"
# Beside the directory and not in it: on a bucket Orbax takes a folder there for an unfinished save.
_DAMAGED = "damaged_"
_SHOWN_REASON = 160  # characters
# What messages have in them where it is the disk or the bucket that refuses: TensorStore's on a disk, others.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_UNWRITABLE = (
  "No space left", "Disk quota", "File too large", "Read-only file system", "Permission denied",
  "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED",
)  # fmt: skip


@runtime_checkable
class State(Protocol):
  """What is saved of a train state; everything else it may hold is not."""

  step: Any
  params: Any
  model_state: Any
  opt_state: Any

  def replace(self, **changes: Any) -> "State": ...


class Checkpoints:
  """The checkpoints in one directory, local or `gs://`; one writer (all processes of a run) at a time.

  Args:
    directory: made when it does not exist.
    keep_last: how many of the latest to keep; the best one is kept beside them.
    best_metric: the metric, higher is better, by which "best" is meant; None takes "mIoU", and "top1"
      where there is none (an image classifier).
    on_failure: called with the error, as soon as this process could not write its part of a checkpoint; from
      another thread, while the run goes on. In a job of several processes nothing else ends the wait: the
      others wait for this one's part, and Orbax here for them. Where it returns, the next `save` or `wait`
      raises the error.
  """

  def __init__(
    self,
    directory: Any,
    *,
    keep_last: int = 3,
    best_metric: str | None = None,
    on_failure: Callable[[Exception], None] | None = None,
  ):
    if keep_last < 1:
      raise UserError(
        f"keep_last is {keep_last}, expected at least 1: a run resumes from its latest checkpoint"
      )
    self._best_metric = best_metric
    policies = ocp.checkpoint_managers
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(keep_last),
          policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False),
        ]
      ),
      best_fn=self._score,  # without it Orbax does not write metrics; what is kept, the policy says
      cleanup_tmp_directories=True,
      todelete_subdir=_DELETED,
      enable_async_checkpointing=True,
    )
    self._directory = reading.make_path(directory)
    self._on_failure = on_failure
    with contextlib.ExitStack() as stack:
      self._hush = stack.enter_context(reading.Hush())
      self._manager = reading.Manager(self._directory, options, on_failure=self._failed)
      self._delete()
      stack.pop_all()  # until it is closed

  def save(self, step: int, state: State, metrics: Mapping[str, float] | None = None) -> bool:
    """Starts to save `state` as `step`; False when that step is saved already.

    Returns when the arrays are copied, so the caller may donate them; the writing goes on behind.

    Raises:
      UserError: it, or the one before, cannot be written.
    """
    if step in self._manager.all_steps():
      return False
    items = _items(state)
    args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    metrics = {name: float(value) for name, value in (metrics or {}).items()}
    with self._writing():
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(**args),
        metrics=metrics,
        force=True,
        custom_metadata={reading.SUMS: sums_of(items)},
      )
    self._delete()
    return saved

  def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes what a checkpoint was evaluated with, after it was saved; every process of a job calls it.

    Raises:
      UserError: it cannot be written.
    """
    self.wait()
    with self._writing():
      if jax.process_index() == 0:
        path = reading.metrics_file(self._directory / str(step))
        # Written beside and renamed: a kill leaves the old file or the new one.
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({name: float(value) for name, value in metrics.items()}))
        part.replace(path)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"metrics of step {step}")
    self._manager.reload()

  def restore(self, state_like: State, step: int | Literal["best", "latest"] | None = None) -> State:
    """`state_like` with every array as it was saved, bit for bit, laid out as its own arrays are.

    Args:
      state_like: a state of the same structure; its arrays give the shapes and the shardings,
        so another number of devices than the saving run's works.
      step: None or "latest", "best", or a number.

    Raises:
      UserError: no such checkpoint, a damaged one, or one of another model (the first differences are
        named).
    """
    step = reading.resolve(self._manager, self._score, self._directory, step)
    try:
      return self._read(state_like, step)
    except Damaged as error:
      raise UserError(
        f"checkpoint {step} in {self._directory} is damaged ({error}); take another of {self.steps()}"
      ) from None

  def restore_latest(self, state_like: State) -> tuple[State, int] | None:
    """The state and step of the latest checkpoint that is whole; None where nothing was ever saved.

    Later ones that are damaged are moved beside the directory, to `damaged_NAME`, so that training can
    save those steps again; which ones and why is said on stderr. All processes of a job agree.

    Raises:
      UserError: all are damaged (nothing is changed then), or the latest is of another model.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps:
      return None
    step, state = reading.first_whole(steps, self._directory, lambda known: self._read(state_like, known))
    later = [known for known in steps if known > step]
    if later:
      self._move_aside(later)
    return state, step

  def steps(self) -> list[int]:
    """Finished checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The last finished checkpoint, or None."""
    return max(self._manager.all_steps(), default=None)

  def best_step(self) -> int | None:
    """The finished checkpoint with the highest metric (the later of equals), or None when none has it."""
    return reading.best_step(self._manager, self._score)

  def metrics(self, step: int) -> dict[str, float]:
    """What the checkpoint was evaluated with; empty when it was not."""
    return self._manager.metrics(step) or {}

  def wait(self) -> None:
    """Until every started save is finished.

    Raises:
      UserError: one could not be written.
    """
    with self._writing():
      self._manager.wait_until_finished()
    self._delete()

  def close(self) -> None:
    """Waits, then releases Orbax's threads."""
    try:
      self.wait()
    finally:
      try:
        self._manager.close()
      finally:
        self._hush.__exit__()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _read(self, state_like: State, step: int) -> State:
    """One step's state; where a process of a job finds damage, all do."""
    found, failure = None, None
    try:
      found = _read_state(state_like, self._directory, step)
    except Exception as error:  # of whatever kind: the other processes would wait for this one
      failure = error
    worst = _worst(0 if failure is None else 1 if isinstance(failure, Damaged) else 2)
    if worst == 0:
      state, said, trees = found
      reading.check_sums(said, trees)  # which are the same in all processes
      return state
    if failure is not None and isinstance(failure, Damaged) == (worst == 1):
      raise failure
    if worst == 1:
      raise Damaged("another process found a damaged file")
    raise UserError(f"another process could not read checkpoint {step} in {self._directory}")

  def _move_aside(self, steps: list[int]) -> None:
    if jax.process_index() == 0:
      folder = self._directory.with_name(_DAMAGED + self._directory.name)
      folder.mkdir(parents=True, exist_ok=True)
      for step in steps:
        target, count = folder / str(step), 1
        while target.exists():
          count += 1
          target = folder / f"{step}.{count}"
        bucket.move(self._directory / str(step), target)
        reading.say(f"the damaged checkpoint {step} was moved to {target}")
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged checkpoints moved")
    self._manager.reload()

  def _delete(self) -> None:
    """Deletes what Orbax has moved out of the way (on gs:// Orbax deletes at once, and nothing is here)."""
    deleted = self._directory / _DELETED
    if jax.process_index() == 0 and deleted.is_dir():
      for checkpoint in deleted.iterdir():  # not the directory itself: one may be moved in meanwhile
        checkpoint.rmtree()

  def _score(self, metrics: Mapping[str, float] | None) -> float:
    return reading.score_of(metrics, self._best_metric)

  def _failed(self, error: Exception) -> None:
    if self._on_failure is None:
      return
    try:
      with self._writing():
        raise error
    except Exception as said:  # a sentence, where it is the disk
      self._on_failure(said)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      if isinstance(error, TimeoutError) and isinstance(error.__cause__, jax.errors.JaxRuntimeError):
        raise  # of Orbax's barrier, for want of another process
      reason = " ".join(str(error).split())
      # Of TensorStore's long messages, the part that says why.
      said = [os.strerror(int(code)) for code in _OS_ERROR.findall(reason)]
      said += [reason[reason.index(sign) :][:_SHOWN_REASON] for sign in _UNWRITABLE if sign in reason]
      if not said and not isinstance(error, OSError):
        raise
      raise UserError(
        f"a checkpoint cannot be written to {self._directory}{by_whom()} ({(said or [reason])[0]}); make"
        " room or choose another --workdir, and the same command goes on from the last one"
      ) from error


def _read_state(
  state_like: State, directory: epath.Path, step: int
) -> tuple[State, dict[str, Any], dict[str, Any]]:
  """The state, what the checkpoint says of itself, and its items as they were read."""
  path = directory / str(step)
  said = reading.description(path)
  wanted = _items(state_like)
  reading.check_same(wanted, reading.saved_shapes(path), f"checkpoint {step} in {directory}")
  args = {
    name: ocp.args.PyTreeRestore(item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    for name, tree in wanted.items()
  }
  found = reading.read_items(path, args)
  optimizer, variables = found["optimizer"], found["variables"]
  leaves, structure = jax.tree_util.tree_flatten_with_path(state_like.opt_state)
  params, average = variables["params"], {}
  if _average(state_like) is not None:
    params, average = optimizer["raw_params"], {"ema": params}
  state = state_like.replace(
    **average,
    step=optimizer["step"],
    params=params,
    model_state=variables["model_state"],
    opt_state=jax.tree.unflatten(structure, [optimizer["opt_state"][_key(path)] for path, _ in leaves]),
  )
  return state, said, found


def _items(state: State) -> dict[str, Any]:
  """Item → tree of arrays."""
  # Optimizer states are named tuples of any depth; by path they need no class to be read back.
  leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
  opt_state = {_key(path): leaf for path, leaf in leaves}
  optimizer = {"step": state.step, "opt_state": opt_state}
  params = average = _average(state)
  if average is None:
    params = state.params
  else:
    optimizer["raw_params"] = state.params
  return {"variables": {"params": params, "model_state": state.model_state}, "optimizer": optimizer}


def _average(state: State) -> Any:
  """The moving average of the parameters, of a state that keeps one."""
  return getattr(state, "ema", None)


def by_whom() -> str:
  """Which process of a job it is, for a message: a disk may be full on one host only."""
  count = jax.process_count()
  return "" if count == 1 else f" by process {jax.process_index()} of {count} on host {socket.gethostname()}"


def _key(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _worst(own: int) -> int:
  """The highest of the processes' numbers, in all of them."""
  if jax.process_count() == 1:
    return own
  return int(np.max(multihost_utils.process_allgather(np.array(own))))
