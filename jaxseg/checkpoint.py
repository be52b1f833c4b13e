"""Checkpoints of a training run (Orbax): asynchronous, atomic, the last few and the best.

A directory `STEP/` holds two items, so that evaluation never reads moments: `variables` (params
and the model's other collections, nested as in the model) and `optimizer` (step and optimizer
state, by path). Where a moving average of the parameters is kept, it is what `variables` holds,
and the parameters that training goes on from are in `optimizer`. What is listed is whole: a
checkpoint is written beside its place and renamed at the end, and renamed away before it is
deleted. What a killed run left over is removed by the next `Checkpoints(directory)`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

_ITEMS = ("variables", "optimizer")
# Deleting takes many files' time: a run killed in the middle of it must not leave half a checkpoint.
_DELETED = "deleted"
_SHOWN_DIFFERENCES = 3
# What "best" means where nobody says: of segmentation models, and of image classifiers.
_BEST_METRICS = ("mIoU", "top1")


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
  """

  def __init__(self, directory: Any, *, keep_last: int = 3, best_metric: str | None = None):
    if keep_last < 1:
      raise ValueError(
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
    self._directory = _path(directory)
    self._manager = _manager(self._directory, options)
    self._delete()

  def save(self, step: int, state: State, metrics: Mapping[str, float] | None = None) -> bool:
    """Starts to save `state` as `step`; False when that step is saved already.

    Returns when the arrays are copied, so the caller may donate them; the writing goes on behind.
    """
    if step in self._manager.all_steps():
      return False
    variables, optimizer = _items(state)
    metrics = {name: float(value) for name, value in (metrics or {}).items()}
    args = ocp.args.Composite(
      variables=ocp.args.PyTreeSave(variables), optimizer=ocp.args.PyTreeSave(optimizer)
    )
    saved = self._manager.save(step, args=args, metrics=metrics, force=True)
    self._delete()
    return saved

  def restore(self, state_like: State, step: int | Literal["best", "latest"] | None = None) -> State:
    """`state_like` with every array as it was saved, bit for bit, laid out as its own arrays are.

    Args:
      state_like: a state of the same structure; its arrays give the shapes and the shardings,
        so another number of devices than the saving run's works.
      step: None or "latest", "best", or a number.

    Raises:
      ValueError: no such checkpoint, or one of another model (the first differences are named).
    """
    step = self._resolve(step)
    wanted = dict(zip(_ITEMS, _items(state_like), strict=True))
    _check_same(wanted, _saved_shapes(self._manager, step), f"checkpoint {step} in {self._directory}")
    args = {
      name: ocp.args.PyTreeRestore(item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
      for name, tree in wanted.items()
    }
    restored = self._manager.restore(step, args=ocp.args.Composite(**args))
    optimizer = restored["optimizer"]
    leaves, structure = jax.tree_util.tree_flatten_with_path(state_like.opt_state)
    params, average = restored["variables"]["params"], {}
    if _average(state_like) is not None:
      params, average = optimizer["raw_params"], {"ema": params}
    return state_like.replace(
      **average,
      step=optimizer["step"],
      params=params,
      model_state=restored["variables"]["model_state"],
      opt_state=jax.tree.unflatten(structure, [optimizer["opt_state"][_key(path)] for path, _ in leaves]),
    )

  def steps(self) -> list[int]:
    """Finished checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The last finished checkpoint, or None."""
    return max(self._manager.all_steps(), default=None)

  def best_step(self) -> int | None:
    """The finished checkpoint with the highest metric (the later of equals), or None when none has it."""
    return _best_step(self._manager, self._score)

  def metrics(self, step: int) -> dict[str, float]:
    """What `save` was given for this checkpoint; empty when it was not evaluated."""
    return self._manager.metrics(step) or {}

  def wait(self) -> None:
    """Until every started save is finished; raises what went wrong in the background."""
    self._manager.wait_until_finished()
    self._delete()

  def close(self) -> None:
    """Waits, then releases Orbax's threads."""
    self.wait()
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _delete(self) -> None:
    """Deletes what Orbax has moved out of the way (on gs:// Orbax deletes at once, and nothing is here)."""
    deleted = self._directory / _DELETED
    if jax.process_index() == 0 and deleted.is_dir():
      for checkpoint in deleted.iterdir():  # not the directory itself: one may be moved in meanwhile
        checkpoint.rmtree()

  def _score(self, metrics: Mapping[str, float] | None) -> float:
    return _score(metrics, self._best_metric)

  def _resolve(self, step: int | str | None) -> int:
    return _resolve(self._manager, self._score, self._directory, step)


def restore_variables(
  directory: Any, *, step: int | Literal["best", "latest"] = "best", best_metric: str | None = None
) -> dict[str, Any]:
  """{"params": ..., "batch_stats": ..., ...} of a checkpoint, as NumPy arrays.

  Reads only, and nothing of the optimizer: safe beside a run that is writing there.

  Args:
    directory: what `Checkpoints` was given.
    step: "best" (the latest, where no checkpoint was evaluated), "latest" or a number.
    best_metric: which metric "best" goes by, as in `Checkpoints`.

  Raises:
    ValueError: there is no such checkpoint.
  """
  directory = _path(directory)
  if not directory.is_dir():
    raise ValueError(
      f"there is no directory {directory}; give the checkpoints directory of a train.py workdir"
    )
  # Neither creates nor cleans up anything: another process may be saving here.
  manager = _manager(directory, ocp.CheckpointManagerOptions(create=False, cleanup_tmp_directories=False))
  try:
    score = lambda metrics: _score(metrics, best_metric)  # noqa: E731
    if step == "best" and _best_step(manager, score) is None:
      step = "latest"
    step = _resolve(manager, score, directory, step)
    shapes = manager.item_metadata(step)["variables"].tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    restore = ocp.args.PyTreeRestore(restore_args=as_numpy)
    saved = manager.restore(step, args=ocp.args.Composite(variables=restore))["variables"]
  finally:
    manager.close()
  return {"params": saved["params"], **saved["model_state"]}


def _path(directory: Any) -> epath.Path:
  path = epath.Path(directory)
  # Orbax refuses relative paths; resolving gs://bucket/x would break it.
  return path if "://" in str(directory) else path.expanduser().resolve()


def _manager(directory: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
  handlers = {name: ocp.PyTreeCheckpointHandler() for name in _ITEMS}
  return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _items(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
  # Optimizer states are named tuples of any depth; by path they need no class to be read back.
  leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
  opt_state = {_key(path): leaf for path, leaf in leaves}
  optimizer = {"step": state.step, "opt_state": opt_state}
  params = average = _average(state)
  if average is None:
    params = state.params
  else:
    optimizer["raw_params"] = state.params
  return {"params": params, "model_state": state.model_state}, optimizer


def _average(state: State) -> Any:
  """The moving average of the parameters, of a state that keeps one."""
  return getattr(state, "ema", None)


def _key(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _score(metrics: Mapping[str, float] | None, name: str | None) -> float:
  metrics = metrics or {}
  name = name or next((known for known in _BEST_METRICS if known in metrics), "")
  value = metrics.get(name, -math.inf)
  return value if math.isfinite(value) else -math.inf


def _best_step(manager: ocp.CheckpointManager, score) -> int | None:
  scored = [(score(manager.metrics(step)), step) for step in manager.all_steps()]
  best = max(scored, default=(-math.inf, None))
  return best[1] if best[0] > -math.inf else None


def _resolve(manager: ocp.CheckpointManager, score, directory, step: int | str | None) -> int:
  steps = sorted(manager.all_steps())
  if not steps:
    raise ValueError(f"there is no finished checkpoint in {directory}")
  if step is None or step == "latest":
    return steps[-1]
  if step == "best":
    best = _best_step(manager, score)
    if best is None:
      raise ValueError(
        f"no checkpoint in {directory} was evaluated, so none is the best; it has steps {steps}"
      )
    return best
  if step not in steps:
    raise ValueError(
      f"there is no checkpoint {step!r} in {directory}; it has steps {steps}, 'best' and 'latest'"
    )
  return step


def _saved_shapes(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  metadata = manager.item_metadata(step)
  return {name: metadata[name].tree for name in _ITEMS}


def _check_same(wanted: Any, saved: Any, where: str) -> None:
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
  raise ValueError(
    f"{where} is of another model or optimizer: {shown};"
    " use a new workdir, or the config that this one was made with"
  )


def _shapes(tree: Any) -> dict[str, str]:
  """Path → "float32(3, 3, 32)" of every leaf; items' own names are left out of the path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(x.dtype).name}{tuple(x.shape)}"
    for item in _ITEMS
    for path, x in jax.tree_util.tree_flatten_with_path(tree[item])[0]
  }
