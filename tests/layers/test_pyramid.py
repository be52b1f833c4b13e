"""ASPP: the image-level branch worked out on its vector, windows, orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.pyramid import ASPP, join_conv, join_conv_reference
from tests import filled
from tests.encoders.checks import apply


# A map of the vector's own size is the corner case; one smaller than the kernel is the other.
@pytest.mark.parametrize("size", [(5, 7), (2, 1), (1, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("pooled", ["vector", "map", None])
def test_join_equals_the_definition(size, kernel_size, pooled):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  branches = [draw(2, *size, 3), draw(2, *size, 4)]
  vector = {"vector": draw(2, 1, 1, 5), "map": draw(2, *size, 5), None: None}[pooled]
  kernels = draw(kernel_size, kernel_size, 5, 6), draw(kernel_size, kernel_size, 7, 6)

  def run(function):
    def total(arguments):
      y = function(*arguments)
      return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.value_and_grad(total, has_aux=True))((vector, branches, *kernels))

  ours, theirs = run(join_conv), run(join_conv_reference)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def _run(x, **fields):
  layer = ASPP(**{"channels": 6, "rates": (2, 3), **fields})
  variables = filled.variables(layer, x)
  return layer, variables


def test_concat_order_moves_the_kernels_rows_only():
  x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 5, 6, 8)), jnp.float32)
  layer, variables = _run(x, fuse_kernel=3)
  first = apply(layer, variables, x)
  kernel = variables["params"]["fuse"]["kernel"]
  params = variables["params"] | {"fuse": {"kernel": jnp.roll(kernel, -6, axis=2)}}
  last = apply(layer.clone(concat_order="pool_last"), variables | {"params": params}, x)
  np.testing.assert_allclose(first, last, atol=1e-5)
  assert np.abs(first - apply(layer.clone(concat_order="pool_last"), variables, x)).max() > 0.1


@pytest.mark.parametrize("align_corners", [False, True])
def test_pool_window(align_corners):
  """A window as large as the map is the global mean; a smaller one sees less than everything."""
  x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 5, 6, 8)), jnp.float32)
  layer, variables = _run(x, align_corners=align_corners)
  whole = apply(layer, variables, x)
  np.testing.assert_allclose(apply(layer.clone(pool_window=(5, 6)), variables, x), whole, rtol=1e-6)
  np.testing.assert_allclose(apply(layer.clone(pool_window=(33, 33)), variables, x), whole, rtol=1e-6)
  small = layer.clone(pool_window=(3, 3))
  other = x.at[0, -1, -1].add(50.0)
  changed = apply(small, variables, other)[0, 0, 0]
  assert np.abs(whole[0, 0, 0] - apply(layer, variables, other)[0, 0, 0]).max() > 0.01
  # With aligned corners the first pixel is the first window's alone.
  same = np.abs(apply(small, variables, x)[0, 0, 0] - changed).max()
  assert same < 1e-6


def test_without_image_pooling():
  x = jnp.ones((1, 4, 4, 8))
  _, variables = _run(x, image_pooling=False, rates=())
  assert set(variables["params"]) == {"branch0", "fuse", "fuse_norm"}
  assert variables["params"]["fuse"]["kernel"].shape == (1, 1, 6, 6)


@pytest.mark.parametrize("separable", [False, True])
def test_folded_has_biases_and_no_batch_norm(separable):
  layer = ASPP(channels=6, rates=(2,), separable=separable, folded=True)
  variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 8)), train=False))
  paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)]
  assert not [path for path in paths if "norm" in path]
  assert sum("bias" in path for path in paths) == sum("kernel" in path for path in paths)
