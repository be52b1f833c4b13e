"""Variables without compiling an initialisation: shapes from `eval_shape`, values from NumPy."""

import functools
import math
import zlib

import flax.linen as nn
import jax
import numpy as np


def variables(model: nn.Module, *inputs) -> dict:
  """What `model.init(key, *inputs, train=False)` gives, of that structure, with ordinary random values."""
  shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), *inputs)
  return values(shapes)


def values(shapes) -> dict:
  """The same from the shapes."""
  return jax.tree_util.tree_map_with_path(_value, shapes)


def _value(path, leaf) -> np.ndarray:
  name = jax.tree_util.keystr(path)
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  normal = rng.standard_normal(leaf.shape)
  kind = path[-1].key
  if kind in ("var", "bases"):  # positive
    value = rng.uniform(0.5, 1.5, leaf.shape)
  elif kind == "scale":
    value = 1 + 0.1 * normal
  elif leaf.ndim > 1:  # kernels: keep the size of what passes through
    value = normal / math.sqrt(math.prod(leaf.shape[:-1]))
  else:
    value = 0.1 * normal
  return value.astype(leaf.dtype)
