"""Rows of one image on two devices give what one device gives, and travel only as was meant."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent

# In a process of its own, since the number of fake devices is fixed when JAX starts. Unoptimised code: the
# exchanges are the same, and compiling is what takes the time.
_SCRIPT = """
import collections
import functools
import re
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg import sharding
from jaxseg.encoders.mit import MiT
from jaxseg.encoders.mscan import MSCAN, MultiScaleConvAttention
from jaxseg.encoders.resnet import stem_pool
from jaxseg.layers.atrous import AtrousConv
from jaxseg.layers import spatial
from jaxseg.layers.attention import SpatialReductionAttention
from jaxseg.layers.conv import Conv, DepthwiseConv
from jaxseg.layers.nmf import NMF
from jaxseg.layers.resize import resize
from jaxseg.layers.upsampled import for_own_images
from jaxseg.models import first_whole_stage
from jaxseg.ops import definition, mix_ffn, mix_ffn_kernel, msca, msca_kernel, softmax_kernel_gpu
from tests import filled

MESH = sharding.make_mesh(spatial=2)
ROWS = NamedSharding(MESH, PartitionSpec(None, "spatial"))
WHOLE = NamedSharding(MESH, PartitionSpec())
KINDS = "collective-permute|all-gather|all-reduce|all-to-all|reduce-scatter"


class Pool(nn.Module):
  def __call__(self, x):
    return stem_pool(x)


class PoolInPlace(nn.Module):
  # Left to XLA's partitioner, this one's gradient is wrong (JAX 0.10.2).
  def __call__(self, x):
    def apply(x, rows):
      return nn.max_pool(x, (3, 3), strides=(1, 1), padding=(rows, (1, 1)))

    return spatial.windowed(apply, x, (), size=3, padding=(1, 1), outside=-jnp.inf)


class Enlarge(nn.Module):
  factor: int

  def __call__(self, x):
    return resize(x, (self.factor * x.shape[1], 3 * x.shape[2]))


class Factorise(nn.Module):
  @nn.compact
  def __call__(self, x):
    return NMF(rank=3, name="nmf")(nn.relu(x), train=False)


def draw(*shape):
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def counted(text):
  return dict(collections.Counter(re.findall(rf"= [^=]+? ({KINDS})\\(", text)))


def check(name, layer, *, height=32, forward, backward):
  x = draw(2, height, 12, 8)
  shapes = jax.eval_shape(layer.init, jax.random.key(1), x)
  variables = jax.tree.map(jnp.asarray, filled.values(shapes))

  def apply(variables, x):
    return layer.apply(variables, x)

  def objective(x, variables):
    return jnp.sin(apply(variables, x)).sum()

  gradients = jax.grad(objective, argnums=(0, 1))
  value, (along, weights) = jax.jit(lambda v, x: (apply(v, x), gradients(x, v)))(variables, x)
  one = value, along
  with jax.set_mesh(MESH):
    rows = ROWS if height % 2 == 0 else WHOLE
    spread = jax.device_put(x, rows)
    run = jax.jit(apply).lower(variables, spread).compile()
    gradient = jax.jit(jax.grad(objective), out_shardings=rows).lower(spread, variables).compile()
    assert counted(run.as_text()) == forward, (name, "forward", counted(run.as_text()))
    assert counted(gradient.as_text()) == backward, (name, "backward", counted(gradient.as_text()))
    two = jax.block_until_ready((run(variables, spread), gradient(spread, variables)))
    spread_weights = jax.block_until_ready(jax.jit(jax.grad(objective, argnums=1))(spread, variables))
  ours = jax.tree_util.tree_leaves_with_path((two, spread_weights))
  wanted_ones = jax.tree.leaves((one, weights))
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(weights) or [0])
  for (path, mine), wanted in zip(ours, wanted_ones, strict=True):
    if jax.tree_util.keystr(path).endswith("['key']['bias']"):  # a softmax takes it away: rounding noise
      assert max(np.abs(mine).max(), np.abs(wanted).max()) < 1e-4 * largest
      continue
    np.testing.assert_allclose(mine, wanted, atol=2e-5 * np.abs(wanted).max() + 1e-7, err_msg=name)
  print(name, forward, backward, flush=True)


both, up = {"collective-permute": 2}, {"collective-permute": 1}
twice = {"collective-permute": 4}
# The gradient's program runs forward, too: its exchanges come on top where they are needed for it.
check("3x3", Conv(4, 3), forward=both, backward=twice)
check("3x3 strided", Conv(4, 3, strides=2), forward=up, backward={"collective-permute": 2})
check("5x5 at rate 3", DepthwiseConv(5, dilation=3), forward=both, backward=twice)
check("atrous", AtrousConv(4, 6), forward=both, backward=twice)
check("pool", Pool(), forward=up, backward={"collective-permute": 2})
check("pool, stride 1", PoolInPlace(), forward=both, backward=twice)
check("enlarge", Enlarge(4), forward=both, backward=twice)
# One exchange of 7 rows each way, whatever the number of branches.
check("MSCA", MultiScaleConvAttention((3, 11)), forward=both, backward=twice)
# 12 rows on two devices are fewer than 7 each: one gather, and the whole map on both.
gathers = dict(forward={"all-gather": 1}, backward={"all-gather": 2})
check("MSCA, few rows", MultiScaleConvAttention((3, 11)), height=12, **gathers)
check("odd rows", Conv(4, 3), height=33, forward={}, backward={})
reduction = SpatialReductionAttention(2, reduction=4)
check("attention", reduction, forward={"all-gather": 1}, backward={"all-gather": 1, "all-reduce": 1})
# The two sums of a step travel together: never tokens, only rank x rank and width x rank numbers.
check("NMF", Factorise(), forward={"all-reduce": 1}, backward={"all-reduce": 3})


def check_stages(height, first_whole):
  # A whole MSCAN of which so many stages stay split: features and gradients are one device's.
  encoder = MSCAN(dims=(8,) * 4, depths=(1,) * 4, ffn_ratios=(2,) * 4, branches=(11,))
  image = draw(1, height, 32, 3)
  variables = jax.tree.map(jnp.asarray, filled.variables(encoder, image))

  def objective(variables, image):
    features = encoder.apply(variables, image, train=False)
    return sum(jnp.sin(x).sum() for x in features.values()), features

  def run():
    gradient = jax.grad(objective, argnums=1, has_aux=True)  # of the image: weights' are checked above
    return jax.block_until_ready(jax.jit(gradient)(variables, image))

  one = run()
  with jax.set_mesh(MESH):
    two = run()
  assert first_whole_stage(encoder, (height, 32), spatial=2) == first_whole
  for mine, wanted in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(mine, wanted, atol=5e-5 * np.abs(wanted).max() + 1e-7)
  for i, feature in enumerate(two[1].values(), start=1):
    rows = feature.sharding.shard_shape(feature.shape)[1]
    split = first_whole is None or f"stage{i}" < first_whole
    assert rows == feature.shape[1] // (2 if split else 1), (height, i, rows, feature.shape)
  print(height, first_whole, flush=True)


check_stages(448, None)
check_stages(224, "stage4")

# A few images at a time under a mesh that spreads them: each part has images of both devices.
images = draw(4, 32, 32, 3)
# A LayerNorm over four channels is badly conditioned: 6e-5 apart on four draws of images, 16 channels 5e-6.
encoder = MiT(dims=(16,) * 4, depths=(1,) * 4, num_heads=(1,) * 4, drop_path_rate=0.0)
variables = jax.tree.map(jnp.asarray, filled.variables(encoder, images))


def total(variables, images, at_once):
  features = encoder.clone(images_at_once=at_once).apply(variables, images, train=True)
  return sum(jnp.sin(x).sum() for x in features.values())


wanted = jax.jit(jax.grad(total), static_argnums=2)(variables, images, 0)
data = sharding.make_mesh(devices=jax.devices())
with jax.set_mesh(data):
  spread = jax.device_put(images, NamedSharding(data, PartitionSpec("data")))
  run = jax.jit(jax.grad(total), static_argnums=2).lower(variables, spread, 1).compile()
  found = jax.block_until_ready(run(variables, spread))
assert "all-gather" not in counted(run.as_text()), counted(run.as_text())
for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
  np.testing.assert_allclose(mine, theirs, atol=2e-5 * max(np.abs(theirs).max(), 1))

# A TPU's kernels, interpreted, each device for its images: gradients of weights are sums over both.
def check_kernel(kernel, definition, x, *weights):
  def gradients(function, x):
    total = lambda *arguments: jnp.sin(function(*arguments)).sum()
    return jax.jit(jax.grad(total, argnums=range(1 + len(weights))))(x, *weights)

  wanted = gradients(definition, x)
  with jax.set_mesh(data):
    on_devices = for_own_images(kernel, same=len(weights))
    found = gradients(on_devices, jax.device_put(x, NamedSharding(data, PartitionSpec("data"))))
  for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(mine, theirs, atol=2e-5 * max(np.abs(theirs).max(), 1))


pairs = [(draw(8, 128) / 3, draw(128)), (draw(3, 3, 1, 128) / 3, draw(128)), (draw(128, 8) / 11, draw(8))]
run_mix_ffn = functools.partial(mix_ffn_kernel.mix_ffn, interpret=True)
check_kernel(run_mix_ffn, mix_ffn.mix_ffn_reference, draw(4, 4, 16, 8), *pairs)

square, strips = (draw(3, 3, 1, 4) / 3, draw(4)), [((draw(1, 3, 1, 4), draw(4)), (draw(3, 1, 1, 4), draw(4)))]
sizes = msca_kernel.Sizes(3, (3,))
check_kernel(
  lambda x, square, strips: msca_kernel.msca(x, msca.pack(square, strips), sizes, True),
  msca.msca_reference,
  draw(4, 5, 8, 4),
  square,
  strips,
)

# GPUs' kernels: that of the loss, and that of a convolution, which finds its devices by itself.
labels = jnp.asarray(np.random.default_rng(1).integers(0, 3, (4, 8, 8)), jnp.int32)

def loss(x, labels):
  log_normaliser, true_logit = softmax_kernel_gpu.terms(x, labels, interpret=True)
  return jnp.sin(log_normaliser - true_logit)

def gradients(function, x, *more):
  return jax.jit(jax.grad(lambda x, *more: function(x, *more).sum()))(x, *more)

logits, images = draw(4, 4, 4, 3), NamedSharding(data, PartitionSpec("data"))
wanted = gradients(loss, logits, labels)
with jax.set_mesh(data):
  found = gradients(for_own_images(loss), *jax.device_put((logits, labels), images))
np.testing.assert_allclose(found, wanted, atol=1e-6)

layer, x = DepthwiseConv(kernel_size=(3, 1)), draw(4, 6, 8, 16)
params = jax.jit(layer.init)(jax.random.key(0), x)
total = lambda params, x: jnp.sin(layer.apply(params, x)).sum()
wanted = jax.jit(jax.grad(total, argnums=(0, 1)))(params, x)
by_images = lambda params, x: jax.shard_map(
  layer.apply, in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec("data")
)(params, x)
of_others = lambda params, x: jnp.sin(by_images(params, x)).sum()
# A convolution on each device's rows, and one in somebody's own shard_map, have no kernel: JAX refuses it.
for mesh, function, kernel in ((data, total, True), (MESH, total, False), (data, of_others, False)):
  with (
    jax.set_mesh(mesh),
    definition.traced_for(platform="cuda"),
    mock.patch.object(jax, "default_backend", lambda: "gpu"),
  ):
    run = jax.jit(jax.grad(function, argnums=(0, 1)))
    program = str(run.trace(params, x).jaxpr)
    assert "shard_map" in program and ("pallas_call" in program) == kernel, program
    found = run(params, x)
  for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(mine, theirs, atol=2e-5 * max(np.abs(theirs).max(), 1))
print("all equal")
"""


def test_rows_on_two_devices():
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
  }
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT],
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.splitlines()[-1] == "all equal"
