"""What every module is checked for."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg


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


def count(tree) -> int:
  """Number of elements of a tree of arrays or shapes."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def perturbed(params, scale: float = 0.3):
  """Noise on every leaf: a scale that starts at zero would hide the branch behind it."""
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  noise = [jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
  return jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise, strict=True)])


# Parameters that cannot matter while training: what adds the same to every key's product is not seen by a
# softmax, and what adds the same to every pixel is taken away by a BatchNorm after it.
CANCELLED = (
  r".*/key/bias",
  r"(.*/)?(stem_conv|embed_conv)/bias",
  r"project_stage\d/bias",
  # Of Xception's units without an activation inside, before a pointwise convolution with a BatchNorm.
  r"(entry|middle|exit0)\d*/conv\d/depthwise/norm/bias",
  # Of the smallest MobileNetV2: linear bottlenecks that neither a shortcut nor a stage reads.
  r"block(0|3|5)/project/norm/bias",
)
# Shares of a tree's largest gradient: below the first is rounding noise, and noise stays below the second.
NOISE, NOISE_AT_MOST = 1e-6, 1e-4


def relative(gradients) -> dict[str, float]:
  """Path → largest gradient of the leaf, as a share of the tree's."""
  found = {
    "/".join(str(key.key) for key in path): float(np.abs(np.asarray(g)).max())
    for path, g in jax.tree_util.tree_leaves_with_path(gradients)
  }
  return {path: size / max(found.values()) for path, size in found.items()}


def dead(gradients) -> list[str]:
  """Paths of leaves whose gradient is rounding noise beside the others', or not finite."""
  return [path for path, share in relative(gradients).items() if not NOISE < share < np.inf]


def unexpected(gradients) -> list[str]:
  """Leaves that have no gradient although they matter, and leaves of `CANCELLED` that have one."""
  named = {p for p in relative(gradients) if any(re.fullmatch(pattern, p) for pattern in CANCELLED)}
  without = [path for path in dead(gradients) if path not in named]
  return without + [p for p, share in relative(gradients).items() if p in named and share > NOISE_AT_MOST]


def random_sum(outputs) -> jax.Array:
  """A scalar to which every element of the outputs contributes its own random share."""
  rng = np.random.default_rng(1)
  shares = [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in jax.tree.leaves(outputs)]
  return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(outputs), shares, strict=True))


def image(height: int, width: int, batch: int = 1) -> np.ndarray:
  """Normalised noise."""
  return np.random.default_rng(2).standard_normal((batch, height, width, 3)).astype(np.float32)
