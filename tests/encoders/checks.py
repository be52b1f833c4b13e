"""What every module is checked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg
from jaxseg.models import SYSTEMS


def init(model, *inputs):
  """Initial variables, by one compilation instead of one for every operation."""
  return jax.jit(lambda key: model.init(key, *inputs, train=False))(jax.random.key(0))


def apply(model, variables, *inputs):
  """The evaluation output, compiled."""
  return jax.jit(lambda v: model.apply(v, *inputs, train=False))(variables)


@functools.cache
def traced(name: str):
  """(number of parameters, features' shapes) of an encoder of the catalog, without any array."""
  encoder = jaxseg.create_model(name)
  picture = jnp.zeros((1, 64, 64, 3))
  features, variables = jax.eval_shape(
    lambda key: encoder.init_with_output(key, picture, train=False), jax.random.key(0)
  )
  return count(variables["params"]), features


def count_system(name: str, num_classes: int) -> int:
  """Parameters of a published system: its encoder's, traced once, and its decoder's."""
  encoder, features = traced(SYSTEMS[name].encoder)
  decoder = jaxseg.create_model(name, num_classes=num_classes).decoder
  shapes = jax.eval_shape(lambda key, f: decoder.init(key, f, train=False), jax.random.key(0), features)
  return encoder + count(shapes["params"])


def count(tree) -> int:
  """Number of elements of a tree of arrays or shapes."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def perturbed(params, scale: float = 0.3):
  """Noise on every leaf: a scale that starts at zero would hide the branch behind it."""
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  noise = [jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
  return jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise, strict=True)])


def dead(gradients) -> list[str]:
  """Paths of leaves whose gradient is zero everywhere, or not finite."""
  found = jax.tree_util.tree_leaves_with_path(gradients)
  return [
    jax.tree_util.keystr(path) for path, g in found if not (np.any(g) and np.all(np.isfinite(np.asarray(g))))
  ]


def random_sum(outputs) -> jax.Array:
  """A scalar to which every element of the outputs contributes its own random share."""
  rng = np.random.default_rng(1)
  shares = [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in jax.tree.leaves(outputs)]
  return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(outputs), shares, strict=True))


def image(height: int, width: int, batch: int = 1) -> np.ndarray:
  """Normalised noise."""
  return np.random.default_rng(2).standard_normal((batch, height, width, 3)).astype(np.float32)
