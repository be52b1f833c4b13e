"""Multiply-accumulates of a model, counted on its jaxpr.

Convolutions and dot products × the trip counts of the loops around them, padded taps
included, on the plain definition of every layer: what papers print as "FLOPs". XLA's
`cost_analysis` counts a loop's body once, elementwise work as FLOPs, and leaves padded
taps out.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import UserError
from jaxseg.ops.definition import plain_definitions


def count_macs(model: nn.Module, image_shape: tuple[int, int], *, batch_size: int = 1) -> int:
  """Multiply-accumulates of one forward pass in evaluation mode; no array is made.

  Args:
    model: what `create_model` gives.
    image_shape: rows, columns.
    batch_size: images.
  """
  return count(*_forward(model, image_shape, batch_size))


def count(function: Callable, *args: Any) -> int:
  """Multiply-accumulates of `function(*args)`; arguments may be shapes.

  Raises:
    UserError: a loop whose number of steps is not known before it runs.
  """
  with plain_definitions():
    return sum(step.macs for step in _steps(jax.make_jaxpr(function)(*args).jaxpr))


@dataclasses.dataclass(frozen=True)
class Part:
  """What a part of a model costs for one image.

  Attributes:
    parameters: trained values.
    macs: multiply-accumulates.
    largest: bytes of the largest array that it makes, before anything is fused.
    output: (rows, columns, channels) of the map that it gives to others: a stage, or the decoder.
  """

  parameters: int = 0
  macs: int = 0
  largest: int = 0
  output: tuple[int, ...] | None = None

  def __add__(self, other: "Part") -> "Part":
    """Both together; the output is the first's."""
    largest = max(self.largest, other.largest)
    return Part(self.parameters + other.parameters, self.macs + other.macs, largest, self.output)


def count_by_part(
  model: nn.Module, image_shape: tuple[int, int], *, variables: Any = None
) -> dict[str, Part]:
  """`count_macs` and what else a part costs, by part: "encoder/stage1", "decoder/classifier", ...

  The blocks of a stage are one part. What a model does outside of its parts (an attention without
  parameters of its own) belongs to the module around it, "decoder".

  Args:
    model: what `create_model` gives.
    image_shape: rows, columns.
    variables: its own, or their shapes; None works them out.
  """
  function, variables, image = _forward(model, image_shape, 1, variables)
  parts: dict[str, Part] = {}
  maps: dict[str, tuple[int, ...]] = {}

  def keep_shapes(method, args, kwargs, context):
    out = method(*args, **kwargs)
    path = context.module.path
    if context.method_name == "__call__" and isinstance(out, dict) and path in ((), ("encoder",)):
      room = "encoder/" if path else ""
      stages = {f"{room}{name}": tuple(x.shape[1:]) for name, x in out.items() if name.startswith("stage")}
      maps.update(stages | ({"decoder": tuple(out["logits"].shape[1:])} if "logits" in out else {}))
    return out

  for keys, leaf in jax.tree_util.tree_flatten_with_path(variables["params"])[0]:
    path = jax.tree_util.keystr(keys, simple=True, separator="/").split("/")[:-1]
    name = part_of(path)
    parts[name] = parts.get(name, Part()) + Part(parameters=math.prod(leaf.shape))
  with plain_definitions(), nn.intercept_methods(keep_shapes):
    jaxpr = jax.make_jaxpr(function)(variables, image).jaxpr
  modules = _module_names(variables["params"])
  used: dict[str, int] = {}  # part → its turn in the program
  for step in _steps(jaxpr):
    name = part_of([word for word in step.scope.split("/") if word in modules])
    used.setdefault(name, len(used))
    if name in parts or step.macs:
      parts[name] = parts.get(name, Part()) + Part(macs=step.macs, largest=step.largest)
  for name, shape in maps.items():
    parts[name] = dataclasses.replace(parts.get(name, Part()), output=shape)
  order = {"encoder": 0, "decoder": 1}

  def place(name: str) -> tuple[Any, ...]:
    # As the network computes; what an encoder has beside its stages comes first.
    room, _, inner = name.rpartition("/")
    if room in ("", "encoder") and inner.startswith("stage"):
      return order.get(room or name, 2), True, natural(name)
    return order.get(room or name, 2), False, used.get(name, len(used)), natural(name)

  return dict(sorted(parts.items(), key=lambda item: place(item[0])))


def natural(name: str) -> list[tuple[int, str]]:
  """A key to sort names by, in which block2 comes before block10."""
  words = re.split(r"(\d+)", name)
  return [(int(word), "") if word.isdigit() else (0, word) for word in words]


def part_of(path: list[str]) -> str:
  """The part that a module belongs to: two levels of an encoder with a decoder, one of an encoder alone."""
  depth = 2 if path[:1] and path[0] in ("encoder", "decoder", "aux_decoder") else 1
  return "/".join(name.split("_block")[0] for name in path[:depth])


def _module_names(params: Any) -> set[str]:
  names = set()
  for keys, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
    names |= set(jax.tree_util.keystr(keys, simple=True, separator="/").split("/")[:-1])
  return names


def _forward(model, image_shape, batch_size, variables=None):
  image = jax.ShapeDtypeStruct(
    (batch_size, *image_shape, getattr(getattr(model, "encoder", model), "in_channels", 3)), jnp.float32
  )
  if variables is None:
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  return lambda variables, image: model.apply(variables, image, train=False), variables, image


@dataclasses.dataclass(frozen=True)
class _Step:
  scope: str  # of Flax's named scopes around it
  macs: int
  largest: int


def _steps(jaxpr: Any, scope: str = "", times: int = 1) -> Iterator[_Step]:
  """Every equation, those of inner programs in place of the one that holds them."""
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    inside = f"{scope}/{eqn.source_info.name_stack}"
    if name == "cond":
      branches = [list(_steps(branch.jaxpr, inside, times)) for branch in params["branches"]]
      yield from max(branches, key=lambda steps: sum(step.macs for step in steps))
    elif name == "while":
      steps = list(_steps(params["body_jaxpr"].jaxpr, inside, times))
      if macs := sum(step.macs for step in steps):
        raise UserError(
          f"a while loop of {macs} multiply-accumulates a step does not tell its number of steps"
        )
      yield from steps
    elif inner := [jaxpr for jaxpr in (getattr(p, "jaxpr", p) for p in params.values()) if _is_jaxpr(jaxpr)]:
      for program in inner:
        yield from _steps(program, inside, times * (params["length"] if name == "scan" else 1))
    else:
      yield _Step(inside, times * _macs(eqn), max(map(_nbytes, eqn.outvars), default=0))


def _is_jaxpr(value: Any) -> bool:
  return hasattr(value, "eqns")


def _nbytes(variable: Any) -> int:
  shape, dtype = getattr(variable.aval, "shape", ()), getattr(variable.aval, "dtype", None)
  # A key's type is none of NumPy's, and small.
  return math.prod(shape) * np.dtype(dtype).itemsize if isinstance(dtype, np.dtype) else 0


def _macs(eqn: Any) -> int:
  if eqn.primitive.name == "conv_general_dilated":
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    # The kernel's input channels are those of one group already.
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return math.prod(eqn.outvars[0].aval.shape) * per_output
  if eqn.primitive.name == "dot_general":
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  return 0
