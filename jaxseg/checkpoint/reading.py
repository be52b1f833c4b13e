"""Reading a checkpoint, and telling whether it is whole.

Items are read by Orbax's handlers and not by its manager, whose barriers would leave the other processes
of a job waiting where one of them finds a damaged file.
"""

import contextlib
import gc
import json
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxseg import bucket
from jaxseg.checkpoint.manager import ITEMS, Manager
from jaxseg.checkpoint.sums import path_of, sums_of
from jaxseg.errors import UserError

SUMS = "sums"  # in the custom metadata of a step
_METADATA = "_CHECKPOINT_METADATA"
_METRICS = ("metrics", "metrics")  # item and file, as Orbax names them
_COMMITTED = "commit_success.txt"
_SHOWN_DIFFERENCES = 3
_LATE_SECONDS = 0.25  # for reads that are under way when another has failed
_SHOWN_REASON = 160  # characters
_CLOSED = "Event loop is closed"
# What "best" means where nobody says: of segmentation models, and of image classifiers.
_BEST_METRICS = ("mIoU", "top1")
# TensorStore says so in its messages; another try may succeed.
_UNREACHABLE = ("UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED", "DEADLINE_EXCEEDED", "ABORTED")

Score = Callable[[Mapping[str, float] | None], float]


class Damaged(Exception):
  """A checkpoint that cannot be what was saved; the message is the reason."""


class Hush(logging.Filter):
  """Keeps back what is printed, with tracebacks, about errors that are raised as well; `with` it.

  Orbax logs them; and where one array of many cannot be written, it closes the event loop, and TensorStore
  fails to report what became of the others.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether the record is to be seen."""
    of_orbax = "orbax" in record.pathname
    return not of_orbax or not (record.levelno >= logging.ERROR or "Metadata file" in str(record.msg))

  def __enter__(self) -> "Hush":
    logging.getLogger("absl").addFilter(self)
    before = sys.unraisablehook
    self._hooks = before, lambda late: None if _CLOSED in str(late.exc_value) else before(late)
    sys.unraisablehook = self._hooks[1]
    return self

  def __exit__(self, *_) -> None:
    logging.getLogger("absl").removeFilter(self)
    if sys.unraisablehook is self._hooks[1]:
      sys.unraisablehook = self._hooks[0]


def make_path(directory: Any) -> epath.Path:
  """An absolute path, or one on a bucket as it is.

  Raises:
    UserError: the bucket cannot be read.
  """
  path = epath.Path(directory)
  bucket.reach(path)
  # Orbax refuses relative paths; resolving gs://bucket/x would break it.
  return path if bucket.is_remote(path) else path.expanduser().resolve()


def restore_variables(
  directory: Any, *, step: int | Literal["best", "latest"] = "best", best_metric: str | None = None
) -> dict[str, Any]:
  """The variables of `restore_step` alone."""
  return restore_step(directory, step=step, best_metric=best_metric)[1]


def restore_step(
  directory: Any, *, step: int | Literal["best", "latest"] = "best", best_metric: str | None = None
) -> tuple[int, dict[str, Any]]:
  """The number of a checkpoint, and its {"params": ..., "batch_stats": ..., ...} as NumPy arrays.

  Reads only, and nothing of the optimizer: safe beside a run that is writing there. Of the best or the
  latest, one that is damaged is passed over for the next, which is said on stderr.

  Args:
    directory: what `Checkpoints` was given.
    step: "best" (the latest, where no checkpoint was evaluated), "latest" or a number.
    best_metric: which metric "best" goes by, as in `Checkpoints`.

  Raises:
    UserError: there is no such checkpoint, or none that is whole.
  """
  directory = make_path(directory)
  if not directory.is_dir():
    raise UserError(
      f"there is no directory {directory}; give the checkpoints directory of a train.py workdir"
    )
  # Neither creates nor cleans up anything: another process may be saving here.
  options = ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=False)
  score = lambda metrics: score_of(metrics, best_metric)  # noqa: E731
  with Hush():
    manager = Manager(directory, options)
    try:
      order = sorted(manager.all_steps(), reverse=True)
      if step == "best":
        order.sort(key=lambda known: score(manager.metrics(known)), reverse=True)
      elif step != "latest":
        order = [resolve(manager, score, directory, step)]
    finally:
      manager.close()
    found, saved = first_whole(order, directory, lambda known: _read_variables(directory / str(known)))
  return found, {"params": saved["params"], **saved["model_state"]}


def first_whole(steps: Iterable[int], directory: epath.Path, read: Callable[[int], Any]) -> tuple[int, Any]:
  """(step, what `read` gives) of the first step that is not damaged; says which were passed over, and why.

  Raises:
    UserError: there are no steps, or all are damaged.
  """
  damaged: list[str] = []
  with _hushing_late_reads():
    for step in steps:
      try:
        found = read(step)
      except Damaged as error:
        damaged.append(f"{step} ({error})")
        continue
      if damaged:
        say(f"in {directory} these checkpoints are damaged: {', '.join(damaged)}; {step} is taken instead")
      return step, found
  if not damaged:
    raise UserError(f"there is no finished checkpoint in {directory}")
  raise UserError(
    f"no checkpoint in {directory} is whole: {', '.join(damaged)}; nothing was changed there, so bring back"
    " a copy of one, or start anew in another workdir"
  )


def say(text: str) -> None:
  """One line on stderr, from the first process of a job."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def description(path: epath.Path) -> dict[str, Any]:
  """What the checkpoint's folder says of itself.

  Raises:
    Damaged: it says nothing, or that it is not complete.
  """
  with _noticing_damage():
    if not (path / _METADATA).exists():
      raise Damaged(f"without {_METADATA}")
    said = json.loads((path / _METADATA).read_text())
    if not isinstance(said, dict):
      raise Damaged(f"{_METADATA} is not a description")
    custom = said.get("custom_metadata")
    if custom is not None and not (isinstance(custom, dict) and isinstance(custom.get(SUMS, {}), dict)):
      raise Damaged(f"{_METADATA} has something else in the place of its sums")
    if not (path / _COMMITTED).exists() and said.get("commit_timestamp_nsecs") is None:
      raise Damaged("never finished")
    return said


def saved_shapes(path: epath.Path, items: tuple[str, ...] = ITEMS) -> dict[str, Any]:
  """Item → tree of the metadata of its arrays.

  Raises:
    Damaged: it cannot be read.
  """
  with _noticing_damage():
    return {name: ocp.PyTreeCheckpointHandler().metadata(path / name).tree for name in items}


def read_items(path: epath.Path, args: Mapping[str, ocp.args.PyTreeRestore]) -> dict[str, Any]:
  """Item → tree of arrays, read as `args` says; not yet compared with their sums.

  Raises:
    Damaged: a file is missing, short, or cannot be unpacked.
  """
  with _noticing_damage():
    return {name: ocp.PyTreeCheckpointHandler().restore(path / name, args=args[name]) for name in args}


def check_sums(said: Mapping[str, Any], trees: Mapping[str, Any]) -> None:
  """Compares arrays with what they added up to when they were saved; older checkpoints have no sums.

  Raises:
    Damaged: other values.
  """
  sums = (said.get("custom_metadata") or {}).get(SUMS)
  found = sums_of(trees)
  if sums is None:
    return
  wrong = [path for path, value in found.items() if sums.get(path) != value]
  if wrong:
    raise Damaged(f"{wrong[0]} has other values than were saved")


@contextlib.contextmanager
def _noticing_damage() -> Iterator[None]:
  """What a reader stumbles over is damage, unless the place cannot be reached at all."""
  try:
    with _hushing_late_reads():
      yield
  except (Damaged, PermissionError, ConnectionError, TimeoutError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:  # readers of damaged files fail in every way
    reason = " ".join(str(error).split()) or type(error).__name__
    if any(sign in reason for sign in _UNREACHABLE):
      raise
    raise Damaged(reason if len(reason) < _SHOWN_REASON else f"{reason[:_SHOWN_REASON]}...") from error


class _LateReads:
  """An unraisable hook that keeps back what becomes of the other reads once one has failed.

  Where one array of many cannot be read, Orbax closes the event loop, and TensorStore reports to it later.
  """

  def __init__(self, before: Callable[[Any], Any]):
    self.before = before
    self.failed = False  # a read, so that some may be late

  def __call__(self, late: Any) -> None:
    code = getattr(late.object, "cr_code", None)  # of a coroutine
    of_orbax = code is not None and "orbax" in code.co_filename
    if not of_orbax and _CLOSED not in str(late.exc_value):
      self.before(late)


@contextlib.contextmanager
def _hushing_late_reads() -> Iterator[None]:
  """While reading, and where it fails until the other reads had time to end; the outermost `with` counts."""
  before, handled = sys.unraisablehook, sys.exc_info()[1]
  hook = before if isinstance(before, _LateReads) else _LateReads(before)
  sys.unraisablehook = hook
  try:
    yield
  except Damaged:  # noticed by us, no read is under way
    raise
  except Exception as error:
    hook.failed = True
    cause: BaseException | None = error
    while cause is not None and cause is not handled:  # their frames hold the other reads
      traceback.clear_frames(cause.__traceback__)
      cause = cause.__cause__ or cause.__context__
    raise
  finally:
    if hook is not before:
      if hook.failed:
        time.sleep(_LATE_SECONDS)
        gc.collect()
      sys.unraisablehook = before


def _read_variables(path: epath.Path) -> Any:
  said = description(path)
  shapes = saved_shapes(path, ("variables",))["variables"]
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
  found = read_items(path, {"variables": ocp.args.PyTreeRestore(restore_args=as_numpy)})
  check_sums(said, found)
  return found["variables"]


def metrics_file(path: epath.Path) -> epath.Path:
  """Where Orbax keeps a step's metrics."""
  return path.joinpath(*_METRICS)


def score_of(metrics: Mapping[str, float] | None, name: str | None) -> float:
  """The metric that "best" goes by, or -inf."""
  metrics = metrics or {}
  name = name or next((known for known in _BEST_METRICS if known in metrics), "")
  value = metrics.get(name, -math.inf)
  return value if math.isfinite(value) else -math.inf


def best_step(manager: Manager, score: Score) -> int | None:
  """The step with the highest score, the later of equals; None when no step has one."""
  scored = [(score(manager.metrics(step)), step) for step in manager.all_steps()]
  best = max(scored, default=(-math.inf, None))
  return best[1] if best[0] > -math.inf else None


def resolve(manager: Manager, score: Score, directory: epath.Path, step: int | str | None) -> int:
  """The number of the step that is meant.

  Raises:
    UserError: there is none.
  """
  steps = sorted(manager.all_steps())
  if not steps:
    raise UserError(f"there is no finished checkpoint in {directory}")
  if step is None or step == "latest":
    return steps[-1]
  if step == "best":
    best = best_step(manager, score)
    if best is None:
      raise UserError(
        f"no checkpoint in {directory} was evaluated, so none is the best; it has steps {steps}"
      )
    return best
  if step not in steps:
    raise UserError(
      f"there is no checkpoint {step!r} in {directory}; it has steps {steps}, 'best' and 'latest'"
    )
  return step


def check_same(wanted: Any, saved: Any, where: str) -> None:
  """Compares paths, shapes and types.

  Raises:
    UserError: the first differences.
  """
  here, there = _shapes(wanted), _shapes(saved)
  differences = [f"{path} is not in it" for path in here if path not in there]
  differences += [f"it has {path}, which is not here" for path in there if path not in here]
  differences += [
    f"{path} is {there[path]} there and {here[path]} here"
    for path in here
    if path in there and there[path] != here[path]
  ]
  if not differences:
    return
  more = len(differences) - _SHOWN_DIFFERENCES
  shown = "; ".join(differences[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
  raise UserError(
    f"{where} is of another model or optimizer: {shown};"
    " use a new workdir, or the config that this one was made with"
  )


def _shapes(tree: Any) -> dict[str, str]:
  """Path → "float32(3, 3, 32)" of every leaf; items' own names are left out of the path."""
  return {
    path_of(path): f"{np.dtype(x.dtype).name}{tuple(x.shape)}"
    for item in ITEMS
    for path, x in jax.tree_util.tree_flatten_with_path(tree[item])[0]
  }
