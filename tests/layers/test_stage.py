"""Blocks as a loop, and rematerialised, are the same blocks: values, statistics, gradients, parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.norm import BatchNorm
from jaxseg.layers.stage import Stage, by_images, never_scan, run_blocks
from tests import filled

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
  variables = filled.variables(Net(scan="on"), X)
  assert sorted(variables["params"]) == ["block0", "block1", "block2"]
  expected, none = run(Net(), variables)
  ours, loops = run(Net(scan="on", remat=remat), variables)
  assert none == 0 and loops == 2  # forward and backward
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-5)
  with never_scan():
    assert run(Net(scan="on", remat=remat), variables)[1] == 0


class Pixels(nn.Module):
  """Images apart from each other, with dropout."""

  rate: float = 0.0

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.LayerNorm(name="norm")(x)
    return {"y": nn.Dropout(self.rate, deterministic=not train)(nn.Dense(3, name="fc")(x)), "x": x}


class Few(nn.Module):
  images: int
  rate: float = 0.0

  @nn.compact
  def __call__(self, x, *, train):
    return by_images(Pixels(self.rate, name="stage"), x, train=train, images=self.images)


def few(images, variables, x, rate=0.0):
  def total(params):
    found = Few(images, rate).apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(3)})
    return jnp.sin(found["y"]).sum() + jnp.cos(found["x"]).sum(), found

  function = jax.grad(total, has_aux=True)
  return jax.jit(function)(variables["params"]), str(jax.make_jaxpr(function)(variables["params"])).count(
    " scan["
  )


def test_a_few_images_at_a_time_are_all_of_them():
  x = jnp.concatenate([X, 2 + X])
  variables = filled.variables(Few(1), x)
  assert list(variables["params"]) == ["stage"]
  expected, none = few(0, variables, x)
  for images, loops in ((1, 2), (2, 2), (4, 0), (3, 0)):  # three do not divide four: all at once
    ours, found = few(images, variables, x)
    assert (found, none) == (loops, 0)
    for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-5)


def test_each_part_draws_its_own_dropout():
  x = jnp.ones((4, 8, 8, 4))
  variables = filled.variables(Few(1), x)
  variables["params"]["stage"]["fc"]["bias"] += 1.0
  (_, found), _ = few(1, variables, x, rate=0.5)
  dropped = np.asarray(found["y"] == 0).reshape(4, -1)
  assert all(0.3 < share < 0.7 for share in dropped.mean(1))
  assert all((dropped[i] != dropped[j]).any() for i in range(4) for j in range(i))


class Dense(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    return x + nn.Dense(4, name="fc")(nn.LayerNorm(name="norm")(x))


class Tiny(Stage, kw_only=True):
  def embed(self, x, *, train):
    return nn.Conv(4, (2, 2), strides=2, name="embed")(x)

  def finish(self, embedded, y):
    return embedded + nn.LayerNorm(name="norm")(y)


class Staged(nn.Module):
  images: int

  @nn.compact
  def __call__(self, x, *, train):
    return by_images(Tiny(block=Dense, num_blocks=2, name="stage"), x, train=train, images=self.images)


def test_a_stage_embeds_all_images_together():
  x = jax.random.normal(jax.random.key(1), (4, 6, 4, 3))
  variables = Staged(1).init(jax.random.key(0), x, train=False)
  assert sorted(variables["params"]["stage"]) == ["block0", "block1", "embed", "norm"]

  def found(images):
    def total(params):
      return jnp.sin(Staged(images).apply({"params": params}, x, train=True)).sum()

    function = jax.value_and_grad(total)
    return jax.jit(function)(variables["params"]), str(jax.make_jaxpr(function)(variables["params"]))

  (wanted, _), (ours, text) = found(0), found(1)
  for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
  # The convolution and its gradient, of four images each; none of one image within a loop.
  assert text.count(" scan[") == 2 and text.count("conv_general_dilated[") == 2
