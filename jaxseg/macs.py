"""Multiply-accumulates of a model, counted on its jaxpr.

Convolutions and dot products × the trip counts of the loops around them, padded taps
included, on the plain definition of every layer: what papers print as "FLOPs". XLA's
`cost_analysis` counts a loop's body once, elementwise work as FLOPs, and leaves padded
taps out.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.ops.definition import plain_definitions


def count_macs(model: nn.Module, image_shape: tuple[int, int], *, batch_size: int = 1) -> int:
  """Multiply-accumulates of one forward pass in evaluation mode; no array is made.

  Args:
    model: what `create_model` gives.
    image_shape: rows, columns.
    batch_size: images.
  """
  image = jax.ShapeDtypeStruct((batch_size, *image_shape, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  return count(lambda variables, image: model.apply(variables, image, train=False), variables, image)


def count(function: Callable, *args: Any) -> int:
  """Multiply-accumulates of `function(*args)`; arguments may be shapes.

  Raises:
    UserError: a loop whose number of steps is not known before it runs.
  """
  with plain_definitions():
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr(jaxpr) -> int:
  return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "conv_general_dilated":
    kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"]
    # The kernel's input channels are those of one group already.
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return math.prod(eqn.outvars[0].aval.shape) * per_output
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  if name == "scan":
    return params["length"] * _jaxpr(params["jaxpr"].jaxpr)
  if name == "while":
    if inside := _jaxpr(params["body_jaxpr"].jaxpr):
      raise UserError(
        f"a while loop of {inside} multiply-accumulates a step does not tell its number of steps"
      )
    return 0
  if name == "cond":
    return max(_jaxpr(branch.jaxpr) for branch in params["branches"])
  inner = (getattr(value, "jaxpr", value) for value in params.values())
  return sum(_jaxpr(value) for value in inner if hasattr(value, "eqns"))
