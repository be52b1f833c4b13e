"""Checkpoints of a training run, on Orbax's public interface: asynchronous, atomic, the last few.

A folder `STEP/` holds three items. `variables` (params and the model's other collections) is all that
evaluation reads; where a moving average of the parameters is kept, it is what `variables` holds. `optimizer`
has the step, the optimizer's state by path, and then the parameters that training goes on from. `record` says
which step it is and has a sum of each array, taken on the device at the save: what was damaged later, or
renamed, is noticed when it is read, and the checkpoint before is taken.
"""

from jaxseg.checkpoint.reading import restore_variables, sums_of
from jaxseg.checkpoint.saving import Checkpoints, State

__all__ = ["Checkpoints", "State", "restore_variables", "sums_of"]
