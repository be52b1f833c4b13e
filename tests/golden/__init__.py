"""Golden parameter trees: the tree is a file format, so a changed path or shape must be a decision.

`python -m tests.golden` writes them anew; then say in CHANGELOG.md what changed and why.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp

import jaxseg

FOLDER = pathlib.Path(__file__).parent
NUM_CLASSES = 19


@functools.cache
def shapes(name: str):
  """The abstract variables of a model at 64×64; encoders alone without a classifier."""
  encoder_alone = name in jaxseg.encoders.ENCODERS
  model = jaxseg.create_model(name, num_classes=None if encoder_alone else NUM_CLASSES)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)


def tree(name: str) -> str:
  """One line a leaf: path, shape, dtype."""
  lines = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(name)):
    where = "/".join(str(key.key) for key in path)
    lines.append(f"{where} {'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype}")
  return "\n".join(sorted(lines)) + "\n"


def names() -> list[str]:
  """Every published system: its tree holds the encoder's."""
  from jaxseg.models import SYSTEMS

  return sorted(SYSTEMS)


def write() -> None:
  """Write every golden file."""
  for name in names():
    (FOLDER / f"{name}.txt").write_text(tree(name))
