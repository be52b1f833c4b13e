"""Blocks as a loop, and rematerialised, are the same blocks: values, statistics, gradients, parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.norm import BatchNorm
from jaxseg.layers.stage import never_scan, run_blocks

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32))


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    return x + nn.Dense(4, name="fc")(BatchNorm(name="norm")(x, train=train))


class Net(nn.Module):
  scan: str = "off"
  remat: bool = False

  @nn.compact
  def __call__(self, x, *, train):
    blocks = [Block(name=f"block{i}") for i in range(3)]
    return run_blocks(blocks, x, train=train, remat=self.remat, scan=self.scan)


def run(net, variables):
  """(gradient, (values, statistics)), and how many loops the program has."""

  def total(params):
    given = {"params": params, "batch_stats": variables["batch_stats"]}
    y, changed = net.apply(given, X, train=True, mutable=["batch_stats"])
    return jnp.sin(y).sum(), (y, changed)

  function = jax.grad(total, has_aux=True)
  text = str(jax.make_jaxpr(function)(variables["params"]))
  return jax.jit(function)(variables["params"]), text.count(" scan[")


@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_of_blocks_is_the_blocks(remat):
  variables = Net(scan="on").init(jax.random.key(0), X, train=False)
  assert sorted(variables["params"]) == ["block0", "block1", "block2"]
  expected, none = run(Net(), variables)
  ours, loops = run(Net(scan="on", remat=remat), variables)
  assert none == 0 and loops == 2  # forward and backward
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-5)
  with never_scan():
    assert run(Net(scan="on", remat=remat), variables)[1] == 0
