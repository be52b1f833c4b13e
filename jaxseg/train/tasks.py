"""What is trained: the part of a run that the loop, which is the same for all, does not know.

A task is one module with the functions of `Task`; `config.task` names it, and its line in `TASKS`
is all it takes to be known.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections
from jax.sharding import Mesh

from jaxseg import lazy
from jaxseg.data.source import DatasetInfo, Source
from jaxseg.errors import UserError
from jaxseg.train.overrides import nearest
from jaxseg.types import Batch, Preprocess

# Resolved on first use: a task brings its own evaluation and data.
TASKS = {
  "segmentation": "jaxseg.train.segmentation",
  "classification": "jaxseg.train.classification",
}


@runtime_checkable
class Report(Protocol):
  """What an evaluation gives; the first of its scores is the one that a run is judged by."""

  def scalars(self) -> dict[str, float]: ...


@runtime_checkable
class Task(Protocol):
  """The functions of a task's module.

  - `archs()`: the names that `config.model.arch` may have;
  - `check(config)`: raises a UserError about values; nothing is read;
  - `make_loss(config, model)`: (outputs, batch["label"]) → loss, parts;
  - `make_prepare(config, ...)`: (batch, key) → batch, on the device, see `make_step`;
  - `batch_shapes(config, batch_size)`: what a step is given, as shapes;
  - `train_batches(config, ...)`: this process's rows of the batches from `start_step` on;
  - `make_evaluator(model, config, ...)`: a function (variables, progress=) → Report, which calls `progress`
    after each batch, in every process of a job;
  - `card_rows(config, model)`: name → text of the recipe card, with a row "augmentation".
  """

  def archs(self) -> Collection[str]: ...
  def check(self, config: ml_collections.ConfigDict) -> None: ...
  def make_loss(self, config: ml_collections.ConfigDict, model: Any) -> Callable: ...
  def make_prepare(
    self, config: ml_collections.ConfigDict, *, preprocess: Preprocess, num_classes: int
  ) -> Callable[[Batch, jax.Array], Batch]: ...
  def batch_shapes(
    self, config: ml_collections.ConfigDict, batch_size: int
  ) -> dict[str, jax.ShapeDtypeStruct]: ...
  def train_batches(
    self,
    config: ml_collections.ConfigDict,
    *,
    preprocess: Preprocess,
    start_step: int,
    mesh: Mesh,
    source: Source,
  ) -> Iterator[Batch]: ...
  def make_evaluator(
    self,
    model: Any,
    config: ml_collections.ConfigDict,
    *,
    info: DatasetInfo,
    preprocess: Preprocess,
    mesh: Mesh,
    source: Source,
  ) -> Callable[..., Report]: ...
  def card_rows(self, config: ml_collections.ConfigDict, model: Any) -> dict[str, str]: ...


def name_of(config: ml_collections.ConfigDict) -> str:
  """`config.task`; the config of an older run has none."""
  return config.get("task", "segmentation")


def task_of(config: ml_collections.ConfigDict) -> Task:
  """The module of `config.task`.

  Raises:
    UserError: there is no such task.
  """
  name = name_of(config)
  if name not in TASKS:
    raise UserError(f"config.task is {name!r}, which is no task{nearest(name, TASKS)}")
  return lazy.load(TASKS[name])


def headline(report: Report) -> str:
  """The score that a run is judged by: "mIoU 0.7512"."""
  name, value = next(iter(report.scalars().items()))
  return f"{name} {value:.4f}"
