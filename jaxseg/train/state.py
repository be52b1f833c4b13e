"""Everything that training changes, as one tree of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxseg.errors import UserError


class TrainState(flax.struct.PyTreeNode):
  """Step, parameters, the model's other collections, and the optimizer's state.

  Attributes:
    step: updates made so far.
    params: what the optimizer changes.
    model_state: collection → tree for everything else ("batch_stats", "buffers").
    opt_state: the optimizer's.
    apply_fn: the model's `apply`; not part of the tree, and so not of a checkpoint.
    tx: the optimizer; the same.
    ema: the parameters' exponential moving average, of their shapes; None when none is kept.
  """

  step: Any  # int32 scalar; Any, like the rest, since trees of shapes and shardings take this form too
  params: Any
  model_state: dict[str, Any]
  opt_state: Any
  apply_fn: Callable = flax.struct.field(pytree_node=False)
  tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
  ema: Any = None

  @property
  def variables(self) -> dict[str, Any]:
    """What `model.apply` takes."""
    return {"params": self.params, **self.model_state}

  @property
  def eval_variables(self) -> dict[str, Any]:
    """What is evaluated and shipped: the moving average's parameters where there is one."""
    return {**self.variables, "params": self.params if self.ema is None else self.ema}


def create_state(
  model: nn.Module, variables: Mapping[str, Any], tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
  """The state before the first step, of `model.init`'s variables.

  Args:
    model: whose `apply` the step calls.
    variables: what `model.init(key, image, train=False)` gives, or weights of that structure.
    tx: what `make_optimizer` gives.
    ema: keep a moving average of the parameters, for a step with an `ema_decay`; it starts as a copy.

  Raises:
    UserError: variables without parameters.
  """
  if "params" not in variables:
    raise UserError(
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
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


def _zero() -> Array:
  return jnp.zeros((), jnp.int32)
