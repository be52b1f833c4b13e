"""Experiment trackers beside TensorBoard, through their own libraries: Weights & Biases, trackio.

Whether and where they upload is theirs to decide: their settings, environment variables and logins hold, and
WANDB_MODE=offline keeps a run on this machine. A run that goes on goes on in the tracker too. A tracker that
fails while training is said so once and left out, since a run is worth more than its log.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np
from etils import epath

from jaxseg import lazy
from jaxseg.console import print_line
from jaxseg.errors import UserError

RUN_ID = "tracker_run_id"


@runtime_checkable
class Tracker(Protocol):
  """Where numbers and pictures of a run go; `train.metrics.Board` is one."""

  def scalars(self, step: int, scalars: Mapping[str, float], *, prefix: str = "train/") -> None: ...
  def image(self, step: int, name: str, image: np.ndarray) -> None: ...
  def text(self, name: str, text: str) -> None: ...
  def close(self) -> None: ...


class Trackers:
  """The board, whose errors end the run, and further trackers, whose errors do not."""

  def __init__(self, board: Tracker, others: Mapping[str, Tracker]):
    self._board, self._others = board, dict(others)

  def scalars(self, step: int, scalars: Mapping[str, float], *, prefix: str = "train/") -> None:
    """To all."""
    self._board.scalars(step, scalars, prefix=prefix)
    if scalars:
      self._each(lambda tracker: tracker.scalars(step, scalars, prefix=prefix))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """`image`: uint8 h w 3."""
    self._board.image(step, name, image)
    self._each(lambda tracker: tracker.image(step, name, image))

  def text(self, name: str, text: str) -> None:
    """A text that belongs to the whole run."""
    self._board.text(name, text)
    self._each(lambda tracker: tracker.text(name, text))

  def close(self) -> None:
    """Ends all."""
    self._board.close()
    self._each(lambda tracker: tracker.close())

  def _each(self, call: Callable[[Tracker], None]) -> None:
    for name, tracker in list(self._others.items()):
      try:
        call(tracker)
      except Exception as error:  # whatever a tracker's library raises
        del self._others[name]
        print_line(f"{name} is left out from now on ({type(error).__name__}: {error})", error=True)


def open_trackers(
  config: ml_collections.ConfigDict, directory: epath.PathLike, *, active: bool = True
) -> dict[str, Tracker]:
  """Those of `config.log.trackers`, started; the run's name in them is that of the workdir.

  Args:
    config: of the run, which they show.
    directory: the workdir, which keeps the id by which a run goes on.
    active: only the first process of a job has any.

  Raises:
    UserError: a library that is not installed, or a tracker that does not start.
  """
  names = tuple(config.log.get("trackers", ())) if active else ()
  project = config.log.get("project", "jaxseg")
  made: dict[str, Tracker] = {}
  for name in names:
    start = _TRACKERS[name]
    library = lazy.load(name)
    try:
      made[name] = start(library, project, directory, config.to_dict())
    except Exception as error:  # whatever a tracker's library raises
      hint = (
        "log in with `wandb login`, or set WANDB_MODE=offline" if name == "wandb" else "look at its settings"
      )
      raise UserError(
        f"{name} does not start ({type(error).__name__}: {' '.join(str(error).split())[:200]}); {hint}, or"
        " leave it out of config.log.trackers"
      ) from None
  return made


class _Wandb:
  """Weights & Biases."""

  def __init__(self, wandb: Any, project: str, directory: epath.PathLike, config: Mapping[str, Any]):
    local = None if "://" in str(directory) else str(directory)
    self._wandb = wandb
    self._run = wandb.init(
      project=project,
      name=epath.Path(directory).name,
      id=_run_id(directory),
      resume="allow",
      dir=local,
      config=config,
      settings=wandb.Settings(console="off", silent=True),
    )
    # Its own counter only rises; a run that goes on from a checkpoint logs some steps again.
    self._run.define_metric("*", step_metric="step")

  def scalars(self, step: int, scalars: Mapping[str, float], *, prefix: str = "train/") -> None:
    self._run.log({"step": step, **{prefix + name: value for name, value in scalars.items()}})

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    self._run.log({"step": step, name: self._wandb.Image(image)})

  def text(self, name: str, text: str) -> None:
    self._run.summary[name] = text

  def close(self) -> None:
    self._run.finish()


class _Trackio:
  """Hugging Face's trackio, a database on this machine unless it is told otherwise."""

  def __init__(self, trackio: Any, project: str, directory: epath.PathLike, config: Mapping[str, Any]):
    self._trackio = trackio
    self._run = trackio.init(
      project=project,
      name=f"{epath.Path(directory).name}-{_run_id(directory)}",
      resume="allow",
      config=config,
      embed=False,
      auto_log_gpu=False,
      auto_log_cpu=False,
    )

  def scalars(self, step: int, scalars: Mapping[str, float], *, prefix: str = "train/") -> None:
    self._run.log({prefix + name: value for name, value in scalars.items()}, step=step)

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    self._run.log({name: self._trackio.Image(image)}, step=step)

  def text(self, name: str, text: str) -> None:
    self._run.log({name: self._trackio.Markdown(f"```\n{text}\n```")}, step=0)

  def close(self) -> None:
    self._run.finish()


_TRACKERS: Mapping[str, Callable[..., Tracker]] = {"wandb": _Wandb, "trackio": _Trackio}
NAMES: Sequence[str] = tuple(_TRACKERS)


def _run_id(directory: epath.PathLike) -> str:
  """The workdir's own, made at the first start."""
  file = epath.Path(directory) / RUN_ID
  if not file.exists():
    file.write_text(uuid.uuid4().hex[:8] + "\n")
  return file.read_text().strip()
