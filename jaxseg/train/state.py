"""Everything that training changes, as one tree of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array


class TrainState(flax.struct.PyTreeNode):
  """Step, parameters, the model's other collections, and the optimizer's state.

  Attributes:
    step: updates made so far.
    params: what the optimizer changes.
    model_state: collection → tree for everything else ("batch_stats", "buffers").
    opt_state: the optimizer's.
    apply_fn: the model's `apply`; not part of the tree, and so not of a checkpoint.
    tx: the optimizer; the same.
  """

  step: Any  # int32 scalar; Any, like the rest, since trees of shapes and shardings take this form too
  params: Any
  model_state: dict[str, Any]
  opt_state: Any
  apply_fn: Callable = flax.struct.field(pytree_node=False)
  tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)

  @property
  def variables(self) -> dict[str, Any]:
    """What `model.apply` takes."""
    return {"params": self.params, **self.model_state}


def create_state(
  model: nn.Module, variables: Mapping[str, Any], tx: optax.GradientTransformation
) -> TrainState:
  """The state before the first step, of `model.init`'s variables."""
  if "params" not in variables:
    raise ValueError(
      f"variables hold {sorted(variables)} and no 'params';"
      " pass what model.init(key, image, train=False) gives"
    )
  params = variables["params"]
  return TrainState(
    step=_zero(),
    params=params,
    model_state={name: tree for name, tree in variables.items() if name != "params"},
    opt_state=tx.init(params),
    apply_fn=model.apply,
    tx=tx,
  )


def _zero() -> Array:
  return jnp.zeros((), jnp.int32)
