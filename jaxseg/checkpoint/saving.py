"""`Checkpoints`: what a run saves, which of it is kept, and where it goes on."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxseg import bucket
from jaxseg.checkpoint.reading import (
  ARRAYS,
  RECORD,
  Damaged,
  State,
  first_undamaged,
  items,
  make_path,
  quiet,
  read_state,
  resolve,
  sums_of,
  tell_once,
)  # fmt: skip
from jaxseg.console import print_line
from jaxseg.errors import UserError

# Deleting takes many files' time: a run killed in the middle of it must not leave half a checkpoint.
_DELETED = "deleted"
# Beside the directory and not in it: on a bucket Orbax takes a folder there for an unfinished save.
_DAMAGED = "damaged_"


class Checkpoints:
  """The checkpoints in one directory, local or `gs://`; one writer (all processes of a run) at a time.

  Args:
    directory: made when it does not exist. What a killed run left unfinished is removed.
    keep_last: how many of the latest to keep.

  Raises:
    UserError: keep_last below 1, or a bucket that cannot be reached.
  """

  def __init__(self, directory: Any, *, keep_last: int = 3):
    if keep_last < 1:
      raise UserError(
        f"keep_last is {keep_last}, expected at least 1: a run resumes from its latest checkpoint"
      )
    self._directory = make_path(directory)
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ARRAYS}
    tell_once()
    with quiet():
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep_last,
          cleanup_tmp_directories=True,
          todelete_subdir=_DELETED,
          lightweight_initialize=True,  # a damaged description of one step must not hide the others
        ),
        item_handlers={**handlers, RECORD: ocp.JsonCheckpointHandler()},
      )
    self._delete()

  def save(self, step: int, state: State) -> bool:
    """Starts to save `state` as `step`; False when that step is saved already.

    Returns when the arrays are copied, so the caller may donate them; the writing goes on behind.

    Raises:
      UserError: it, or the one before, cannot be written.
    """
    if step in self._manager.all_steps():
      return False
    trees = items(state)
    args = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
    args[RECORD] = ocp.args.JsonSave({"step": step, "sums": sums_of(trees)})
    with self._writing():
      saved = self._manager.save(step, args=ocp.args.Composite(**args), force=True)
    self._delete()
    return saved

  def restore(self, state_like: State, step: int | Literal["latest"] | None = None) -> State:
    """`state_like` with every array as it was saved, bit for bit, laid out as its own arrays are.

    Args:
      state_like: a state of the same structure; its arrays give the shapes and the shardings,
        so another number of devices than the saving run's works.
      step: None or "latest", or a number.

    Raises:
      UserError: no such checkpoint, a damaged one, or one of another model (the first differences are
        named).
    """
    step = resolve(self.steps(), self._directory, step)
    try:
      return self._read(state_like, step)
    except Damaged as error:
      raise UserError(
        f"checkpoint {step} in {self._directory} is damaged ({error}); take another of {self.steps()}"
      ) from None

  def restore_latest(self, state_like: State) -> tuple[State, int] | None:
    """The state and step of the latest undamaged checkpoint; None where nothing was ever saved.

    Later ones that are damaged are moved beside the directory, to `damaged_NAME`, so that training can
    save those steps again; which ones and why is said on stderr. All processes of a run agree.

    Raises:
      UserError: all are damaged (nothing is changed then), or the latest is of another model.
    """
    steps = self.steps()[::-1]
    if not steps:
      return None
    step, state = first_undamaged(steps, self._directory, lambda number: self._read(state_like, number))
    self._move_aside([number for number in steps if number > step])
    return state, step

  def steps(self) -> list[int]:
    """Finished checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The last finished checkpoint, or None."""
    return max(self._manager.all_steps(), default=None)

  def wait(self) -> None:
    """Waits until every started save is finished.

    Raises:
      UserError: one could not be written.
    """
    with self._writing():
      self._manager.wait_until_finished()
    self._delete()

  def check(self) -> None:
    """Raises what went wrong with a save in the background, without waiting."""
    with self._writing():
      self._manager.check_for_errors()

  def close(self) -> None:
    """Waits, then releases Orbax's threads."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _read(self, state_like: State, step: int) -> State:
    """One step's state; where one process of a run finds damage, all do."""
    state, failure = None, None
    try:
      state = read_state(state_like, self._directory, step)
    except Exception as error:  # of whatever kind: the other processes would wait for this one
      failure = error
    rank = 0 if failure is None else 1 if isinstance(failure, Damaged) else 2
    worst = rank
    if jax.process_count() > 1:
      worst = int(np.max(multihost_utils.process_allgather(np.array(rank))))
    if failure is not None and rank == worst:
      raise failure
    if worst == 1:
      raise Damaged("another process found a damaged file")
    if worst == 2:
      raise UserError(f"another process could not read checkpoint {step} in {self._directory}")
    return state

  def set_aside(self, step: int) -> None:
    """Moves a checkpoint beside the directory, to `damaged_NAME`; every process of a run calls it."""
    self._move_aside([step])

  def _move_aside(self, steps: list[int]) -> None:
    if not steps:
      return
    if jax.process_index() == 0:
      folder = self._directory.with_name(_DAMAGED + self._directory.name)
      folder.mkdir(parents=True, exist_ok=True)
      for step in steps:
        target, count = folder / str(step), 1
        while target.exists():
          count += 1
          target = folder / f"{step}.{count}"
        bucket.move(self._directory / str(step), target)
        print_line(f"the damaged checkpoint {step} was moved to {target}", error=True)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged checkpoints moved")
    self._manager.reload()

  def _delete(self) -> None:
    """Deletes what Orbax has moved out of the way (on gs:// Orbax deletes at once, and nothing is here)."""
    deleted = self._directory / _DELETED
    if jax.process_index() == 0 and deleted.is_dir():
      for checkpoint in deleted.iterdir():  # not the directory itself: one may be moved in meanwhile
        checkpoint.rmtree()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      with quiet():
        yield
    except Exception as error:
      reason = bucket.why_unwritable(self._directory, error)
      if reason is None and not isinstance(error, OSError):
        raise
      raise UserError(
        f"a checkpoint cannot be written to {self._directory}{by_whom()} ({reason or error}); make"
        " room or choose another --workdir, and the same command goes on from the last one"
      ) from error


def by_whom() -> str:
  """Which process of a run it is, for a message: a disk may be full on one host only."""
  count = jax.process_count()
  return "" if count == 1 else f" by process {jax.process_index()} of {count} on host {socket.gethostname()}"
