"""Orbax's manager of the checkpoints of a directory, with what a job of several processes needs besides."""

from collections.abc import Callable

import orbax.checkpoint as ocp
from etils import epath

ITEMS = ("variables", "optimizer")


class Manager(ocp.CheckpointManager):
  """Orbax's, but it does not ask the preemption service, which the loop asks by counts of its own.

  And an error of its thread that writes goes to `on_failure` as well, at once and from a thread of Orbax's:
  what Orbax does next is to wait for the other processes of the job, who wait for this one.
  """

  def __init__(
    self,
    directory: epath.Path,
    options: ocp.CheckpointManagerOptions,
    *,
    on_failure: Callable[[Exception], None] | None = None,
  ):
    self._on_failure = on_failure
    handlers = {name: ocp.PyTreeCheckpointHandler() for name in ITEMS}
    try:
      super().__init__(directory, options=options, item_handlers=handlers)
    except (ValueError, TypeError, AttributeError, KeyError):
      # A step whose own description is damaged: list it without, it is found out when it is read.
      options.lightweight_initialize = True
      super().__init__(directory, options=options, item_handlers=handlers)
    # What describes a step is written by the first process alone, and waited for before its arrays are.
    store = self._non_blocking_metadata_store
    store.wait_until_finished = self._telling(store.wait_until_finished)

  def reached_preemption(self, step: int) -> bool:
    """Never: see above."""
    return False

  def _wait_for_checkpointers(self) -> None:
    self._telling(super()._wait_for_checkpointers)()

  def _telling(self, wait: Callable[[], None]) -> Callable[[], None]:
    """`wait`, whose error is told before it goes on to Orbax."""

    def waiting():
      try:
        wait()
      except Exception as error:
        if self._on_failure is not None:
          self._on_failure(error)
        raise

    return waiting

  def metrics(self, step: int) -> dict[str, float] | None:
    """What the step was evaluated with; None where that cannot be read."""
    try:
      return super().metrics(step)
    except (ValueError, OSError):
      return None
