"""Blocks of the real encoders, rematerialised and as one loop: the same maps, gradients and statistics."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxseg import catalog
from jaxseg.encoders import ENCODERS, cgnet, mit, mscan, resnet
from jaxseg.layers.stage import run_blocks
from tests import filled
from tests.encoders.checks import random_sum

PARTIAL = functools.partial
MIT = PARTIAL(mit.Block, 2, 2, 2, mit.EPSILONS["nvlabs"])
MSCAN = PARTIAL(mscan.Block, 2, branches=(3,))
BLOCKS = {
  mscan.MSCAN: PARTIAL(mscan.Stage, dim=4, block=MSCAN, drop_path_rates=(0.0, 0.4, 0.5)),
  mit.MiT: PARTIAL(
    mit.Stage,
    dim=4,
    block=MIT,
    patch_size=3,
    epsilons=mit.EPSILONS["nvlabs"],
    drop_path_rates=(0.0, 0.4, 0.5),
  ),
  cgnet.CGNet: PARTIAL(cgnet.Stage, block=PARTIAL(cgnet.CGBlock, 4, 2, 2), first=1),
}
# Numbers are the point here, and not how fast they come.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class ResNetStage(nn.Module):
  """The bottlenecks of a ResNet's stage, of which the first widens."""

  num_blocks: int
  remat: bool
  scan: str

  @nn.compact
  def __call__(self, x, *, train):
    unit = resnet.Unit(1, 2)
    # Of 16 channels: over 2 the BatchNorms amplify rounding to 1e-5, whatever the start.
    blocks = [resnet.Bottleneck(16, unit, "spatial", name=f"b{n}") for n in range(self.num_blocks + 1)]
    return run_blocks(blocks, x, train=train, remat=self.remat, scan=self.scan)


BLOCKS[resnet.ResNet] = ResNetStage
X = np.random.default_rng(0).standard_normal((2, 12, 14, 4)).astype(np.float32)


def run(kind, *, remat: bool, scan: str):
  """(gradient of parameters and map, (map, statistics)) in training, of X and of X rounded; the program."""
  stage = BLOCKS[kind](num_blocks=3, remat=remat, scan=scan)
  variables = filled.variables(stage, X)
  rest = {k: v for k, v in variables.items() if k != "params"}

  def total(params, x):
    # What stochastic depth drops is drawn by the stage, and the same in a loop.
    rngs = {"dropout": jax.random.key(0)}
    y, changed = stage.apply({"params": params, **rest}, x, train=True, mutable=list(rest), rngs=rngs)
    return random_sum(y), (y, changed)

  function = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
  traced = function.trace(variables["params"], X)
  compiled = traced.lower().compile()
  return *(compiled(variables["params"], x) for x in (X, np.nextafter(X, np.float32(9)))), str(traced.jaxpr)


@functools.cache
def expected(kind):
  return run(kind, remat=False, scan="off")


def test_every_encoder_with_a_loop_is_here():
  assert {entry.func for entry in ENCODERS.values() if "scan" in catalog.fields(entry)} == set(BLOCKS)


@pytest.mark.parametrize("scan", ["off", "on"])
@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)
def test_rematerialised_blocks_are_the_same(kind, scan):
  wanted, moved, _ = expected(kind)
  ours, _, program = run(kind, remat=True, scan=scan)
  assert jax.tree.structure(ours) == jax.tree.structure(wanted)
  for (path, mine), theirs, other in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(wanted), jax.tree.leaves(moved), strict=True
  ):
    # Relative to the largest of the array; a cancelled bias, before a BatchNorm, is held to the gradient's.
    # What the input's rounding alone moves by more (CGNet on JAX 0.12: 4e-6) is not known better.
    near = max(2e-6 * max(np.abs(theirs).max(), 1.0), np.abs(other - theirs).max())
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=near, err_msg=jax.tree_util.keystr(path))
  assert ("length=3" in program) == (scan == "on")
  assert "prevent_cse" in program
