"""A small model with random variables, and comparing trees to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg
from jaxseg.models import channels_of
from jaxseg.pretrained import tree

TINY = dict(widths=(8, 16, 32), num_blocks=(2, 2), reductions=(4, 8))


def init(num_classes=5, decoder=None, seed=0, name="cgnet_m3n21", encoder=TINY):
  """A small model and random variables of its shapes; nothing is compiled."""
  model = jaxseg.create_model(name, num_classes=num_classes, encoder=encoder, decoder=decoder)
  init = functools.partial(model.init, train=False)
  image = jax.ShapeDtypeStruct((1, 64, 64, channels_of(model)), jnp.float32)
  shapes = jax.eval_shape(init, jax.random.key(0), image)
  rng = np.random.default_rng(seed)

  def draw(x):
    if len(x.shape) <= 1:
      return jnp.asarray(rng.uniform(0.3, 1.2, x.shape), jnp.float32)
    return jnp.asarray(rng.standard_normal(x.shape) / np.prod(x.shape[:-1]) ** 0.5, jnp.float32)

  return model, jax.tree.map(draw, shapes)


def same(a, b):
  """Both trees have the same paths and bits."""
  a, b = tree.flat(a), tree.flat(b)
  assert a.keys() == b.keys()
  for path in a:
    assert np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes(), path
