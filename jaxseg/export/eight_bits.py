"""Kernels in eight bits: whole numbers from -127 to 127 and a scale for each output channel.

The rule is symmetric and per channel (https://arxiv.org/abs/1806.08342): the largest weight of a channel is
127 steps. Kernels alone are rounded. Biases, norms and the arithmetic stay float32, so that a file is
smaller, and not faster.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from jaxseg.hub import Net

MOST = 127


class Rounded(NamedTuple):
  """`values · scale` is the kernel; scale has one number for each of the last axis."""

  values: Int8[np.ndarray, "*size k"]
  scale: Float[np.ndarray, " k"]

  def kernel(self) -> Float[Array, "*size k"]:
    """In float32; traced, so that a program holds the eight bits."""
    return jnp.asarray(self.values).astype(jnp.float32) * self.scale


def with_int8_weights(net: Net) -> Net:
  """`net` with kernels rounded to what eight bits hold, in float32: what a file of `weights="int8"` gives.

  For evaluation: `with_int8_weights(net).save_pretrained(folder)`, and `jaxseg eval` with that folder.
  """
  return dataclasses.replace(
    net, variables=_on_kernels(net.variables, lambda x: np.asarray(round_kernel(x).kernel()))
  )


def rounded(variables: Any) -> Any:
  """Variables with `Rounded` in place of kernels."""
  return _on_kernels(variables, round_kernel)


def restored(variables: Any) -> Any:
  """Variables with kernels in place of `Rounded`."""
  is_rounded = lambda x: isinstance(x, Rounded)  # noqa: E731
  return jax.tree.map(lambda x: x.kernel() if is_rounded(x) else x, variables, is_leaf=is_rounded)


def round_kernel(kernel: Float[Any, "*size k"]) -> Rounded:
  """The nearest of 255 steps, whose size is that of the channel's largest weight by 127."""
  kernel = np.asarray(kernel, np.float32)
  largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
  scale = np.where(largest > 0, largest / MOST, 1).astype(np.float32)
  return Rounded(np.rint(kernel / scale).astype(np.int8), scale)


def _on_kernels(variables: Any, function: Any) -> Any:
  """The tree with `function` of every kernel: parameters of two axes or more."""
  params = jax.tree.map(lambda x: function(x) if np.ndim(x) > 1 else x, variables["params"])
  return {**variables, "params": params}
