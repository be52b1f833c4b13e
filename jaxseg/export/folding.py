"""BatchNorm in evaluation as part of the convolution before it: its kernel is scaled, a shift is left."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from jaxseg.layers.atrous import AtrousConv
from jaxseg.layers.conv import Conv, DepthwiseConv
from jaxseg.layers.norm import BatchNorm
from jaxseg.layers.stage import never_scan
from jaxseg.models import channels_of

Path = tuple[str, ...]
_CONVS = (Conv, DepthwiseConv, AtrousConv)


def fold(
  model: nn.Module, variables: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Path, Float[np.ndarray, " c"]]]:
  """Variables with scaled kernels, and what each folded BatchNorm still adds, by its path.

  A BatchNorm is folded where its input is what a convolution of ours returned. That no one else reads this
  output is true of the models here (`tests/export` compares each), and of the file that is
  written the outputs are compared in any case.
  """
  variables = jax.tree.map(np.asarray, dict(variables))
  flat = {name: dict(traverse_util.flatten_dict(tree)) for name, tree in variables.items()}
  shifts = {}
  for norm, (conv, epsilon) in _pairs(model, variables).items():
    value = lambda collection, path, name: np.float64(flat[collection][(*path, name)])  # noqa: E731
    weight = value("params", norm, "scale") / np.sqrt(value("batch_stats", norm, "var") + epsilon)
    for name in ("kernel", "bias"):  # their last axis is the output's channels
      if (*conv, name) in flat["params"]:
        folded = value("params", conv, name) * weight
        flat["params"][(*conv, name)] = folded.astype(np.float32)
    shift = value("params", norm, "bias") - value("batch_stats", norm, "mean") * weight
    shifts[norm] = shift.astype(np.float32)
  return {name: traverse_util.unflatten_dict(tree) for name, tree in flat.items()}, shifts


@contextlib.contextmanager
def folded(shifts: Mapping[Path, np.ndarray]) -> Iterator[None]:
  """Inside, the BatchNorms of these paths add their shift and activate."""

  def intercept(call, args, kwargs, context):
    module = context.module
    if not isinstance(module, BatchNorm) or context.method_name != "__call__" or module.path not in shifts:
      return call(*args, **kwargs)
    y = args[0] + jnp.asarray(shifts[module.path], args[0].dtype)
    slope = kwargs.get("slope")
    return (y if slope is None else _activate(y, slope)).astype(args[0].dtype)

  with nn.intercept_methods(intercept):
    yield


def _activate(y, slope):
  """ReLU by its own name, which formats fuse with the convolution; PReLU otherwise."""
  if not isinstance(slope, jax.core.Tracer) and not np.any(np.asarray(slope)):
    return jnp.maximum(y, 0)
  return jnp.where(y > 0, y, slope * y)


def _pairs(model: nn.Module, variables: Mapping[str, Any]) -> dict[Path, tuple[Path, float]]:
  """BatchNorm → the convolution whose output it reads, and its epsilon."""
  made, pairs = {}, {}

  def intercept(call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__":
      return call(*args, **kwargs)
    if isinstance(module, BatchNorm) and id(args[0]) in made:
      pairs[module.path] = made[id(args[0])][0], module.epsilon
    result = call(*args, **kwargs)
    if isinstance(module, _CONVS):
      made[id(result)] = module.path, result  # kept, so that no other object gets its id
    return result

  def trace(image):
    with never_scan(), nn.intercept_methods(intercept):
      return model.apply(variables, image, train=False)

  jax.eval_shape(trace, jax.ShapeDtypeStruct((1, 64, 64, channels_of(model)), np.float32))
  return pairs
