"""Checkpoints of a training run (Orbax): asynchronous, atomic, the last few and the best.

A directory `STEP/` holds two items, so that evaluation never reads moments: `variables` (params
and the model's other collections, nested as in the model) and `optimizer` (step and optimizer
state, by path). Where a moving average of the parameters is kept, it is what `variables` holds,
and the parameters that training goes on from are in `optimizer`. What is listed is whole: on a disk a
checkpoint is written beside its place and renamed at the end, and renamed away before it is
deleted; on a bucket its last file says that it is complete. What a killed run left over is removed by
the next `Checkpoints(directory)`. What was damaged later on is noticed when it is read, by the sums of
its arrays too, and the one before is taken.
"""

from jaxseg.checkpoint.reading import restore_variables
from jaxseg.checkpoint.saving import Checkpoints, State

__all__ = ["Checkpoints", "State", "restore_variables"]
