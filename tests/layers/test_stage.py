"""Blocks as a loop, and rematerialised, are the same blocks: features, gradients, statistics, parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.encoders.cgnet import CGNet
from jaxseg.encoders.mit import MiT
from jaxseg.encoders.mscan import MSCAN
from jaxseg.encoders.resnet import ResNet
from jaxseg.layers import stage
from tests import filled

# Stages of three blocks, of which a residual network's first is another kind.
ENCODERS = {
  "mscan": MSCAN((8,) * 4, (3, 1, 1, 1), (2,) * 4, drop_path_rate=0.0),
  "mit": MiT((8,) * 4, (3, 1, 1, 1), (1,) * 4, ffn_ratios=(2,) * 4, drop_path_rate=0.0),
  "cgnet": CGNet((8, 8, 8), (1, 4), reductions=(4, 4)),
  "resnet": ResNet((4, 1, 1, 1), 4, stem="beta"),
}
IMAGE = np.random.default_rng(0).standard_normal((2, 45, 39, 3)).astype(np.float32)


def run(encoder, variables):
  """(features, statistics, gradient of the parameters), and how many loops the program has."""
  rest = {k: v for k, v in variables.items() if k != "params"}

  def total(params):
    features, changed = encoder.apply({"params": params, **rest}, IMAGE, train=True, mutable=["batch_stats"])
    return sum(jnp.sin(x).sum() for x in features.values()), (features, changed)

  function = jax.grad(total, has_aux=True)
  text = str(jax.make_jaxpr(function)(variables["params"]))
  gradient, (features, changed) = jax.jit(function)(variables["params"])
  return features, changed, gradient, text.count(" scan["), text.count("remat2[") + text.count("checkpoint[")


@functools.cache
def plain(name: str):
  variables = jax.tree.map(jnp.asarray, filled.variables(ENCODERS[name], IMAGE))
  return variables, run(ENCODERS[name].clone(scan="off"), variables)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_loop_of_blocks_is_the_blocks(name, remat):
  variables, expected = plain(name)
  encoder = ENCODERS[name].clone(scan="on", remat=remat)
  shapes = jax.eval_shape(functools.partial(encoder.init, train=False), jax.random.key(0), IMAGE)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
  ours = run(encoder, variables)
  assert expected[3] == expected[4] == 0 and ours[3] >= 1 and (ours[4] >= 1) == remat
  for mine, wanted in zip(jax.tree.leaves(ours[:3]), jax.tree.leaves(expected[:3]), strict=True):
    np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6 * max(np.abs(wanted).max(), 1))
  assert jax.tree.structure(ours[:3]) == jax.tree.structure(expected[:3])


def test_drop_path_rates_of_a_loop_are_the_blocks_own():
  """At rates 0, a half and (nearly) 1: no sample, half of them and all lose their branch."""
  block = functools.partial(MSCAN, (4,) * 4, (3, 1, 1, 1), (1,) * 4, attention="none", layer_scale=1.0)
  dropped = []
  for scan in ("on", "off"):
    encoder = block(drop_path_rate=0.999 * 5 / 2, scan=scan)  # of 6 blocks, the first three
    variables = filled.variables(encoder, IMAGE)
    image = np.repeat(IMAGE[:1], 128, 0)
    apply = jax.jit(functools.partial(encoder.apply, train=True, mutable=["batch_stats"]))
    features, _ = apply(variables, image, rngs={"dropout": jax.random.key(0)})
    # Two branches, each kept or dropped, in the second block; the third's are dropped.
    flat = np.asarray(features["stage1"]).reshape(128, -1)
    dropped.append(len(np.unique(np.round(flat, 3), axis=0)))
  assert dropped == [4, 4]


def test_auto_makes_a_loop_of_deep_rematerialised_stages_only():
  deep = ENCODERS["mscan"].clone(depths=(6, 1, 1, 1))
  variables = filled.variables(deep, IMAGE)

  def loops(**fields):
    encoder = deep.clone(**fields)
    return str(jax.make_jaxpr(lambda v: encoder.apply(v, IMAGE, train=False))(variables)).count(" scan[")

  assert loops() == loops(remat=True, scan="off") == 0
  assert loops(remat=True) == 1
  with stage.never_scan():
    assert loops(remat=True, scan="on") == 0
