"""Memory, the largest batch, topologies, meshes, and the command itself."""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from jaxseg import cli, plan, sharding
from jaxseg import config as config_lib
from jaxseg.chips import TPUS
from jaxseg.commands.plan import training_plan
from jaxseg.plan.exchange import Collective
from jaxseg.plan.fit import Attempt, Largest, Memory, exhausted, largest_batch
from jaxseg.plan.meshes import working_meshes
from jaxseg.plan.report import _hosts, report
from jaxseg.plan.topology import Topology

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GIB = 1 << 30

OOM = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.50G of 15.48G hbm.
Largest program allocations in hbm:

  1. Size: 14.00G
     Operator: op_type="OneHot" op_name="model/loss/one_hot"
     Shape: s32[29360128,10]{1,0:T(8,128)}
     Unpadded size: 1.09G
     ==========================
  2. Size: 2.62G
     Shape: f32[128,256,896,18]{0,3,2,1:T(8,128)}
"""


def test_out_of_memory_is_read():
  assert exhausted(OOM) == (
    19.5 * GIB,
    15.48 * GIB,
    ("14.00 GiB s32[29360128,10] of model/loss/one_hot", "2.62 GiB f32[128,256,896,18]"),
  )
  newer = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for"
    " HLO temporaries (40.25G) exceeds available HBM (15.75G). HLO module: jit_q."
  )
  assert exhausted(newer) == (40.25 * GIB, 15.75 * GIB, ())
  assert exhausted("out of memory") == (0.0, None, ())


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("first", [8, 64, 800])
def test_largest_batch(first, told):
  """Memory that grows with a bend: found exactly, in a few compilations, from below and from above."""
  limit, unit, tried = 16.0, 8, []

  def compile_at(batch):
    tried.append(batch)
    need = 1.0 + 0.05 * batch + 1e-5 * batch**2
    memory = Memory(arguments=1.0, temporaries=need - 1.0)
    fits = need <= limit
    return Attempt(batch, memory if fits or told else Memory(), fits)

  truth = max(b for b in range(8, 2000, 8) if compile_at(b).fits)
  tried.clear()
  found = largest_batch(compile_at(first), compile_at, unit=unit, memory=limit, compiles=12)
  assert (found.fits, found.refused, found.estimate) == (truth, truth + unit, truth)
  assert len(tried) == len(set(tried)) and all(batch % unit == 0 for batch in tried)
  # Without compilations: an estimate, in the same region; none where the compiler only refuses.
  guess = largest_batch(compile_at(first), compile_at, unit=unit, memory=limit, compiles=0).estimate
  if told or first < truth:
    assert 0.75 * truth < guess < 1.25 * truth
  else:
    assert guess is None


def test_meshes_that_work():
  assert list(working_meshes(4, 4, 64)) == [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)]
  assert (16, 1, 16) in set(working_meshes(256, 16, 512)) and (16, 1, 1) not in set(
    working_meshes(16, 8, 512)
  )
  assert all(16 % (d * f) == 0 and d * f * s == 256 for d, f, s in working_meshes(256, 16, 512))


def test_meshes_that_repeat_the_work_are_left_out():
  """From 16 devices an image on, this model's first stage is whole on each of them."""
  asked = []

  def whole_from(spatial):
    asked.append(spatial)
    return {2: None, 4: "stage3", 8: "stage2"}.get(spatial, "stage1")

  said = plan.advice(64, 16, 512, whole_from=whole_from)
  assert said == (
    "for a batch of 16 these would work: meshes (data x fsdp x spatial) that use all 64 devices:"
    " 16x1x4 (rows whole from stage3 on), 8x2x4 (rows whole from stage3 on),"
    " 8x1x8 (rows whole from stage2 on), 4x2x8 (rows whole from stage2 on);"
    " 16 devices as data=16; a batch of 64"
  )
  assert sorted(asked) == [4, 8, 16]  # each traces a model
  # None is worth all 256; nor any split, where already the stem is whole.
  assert plan.advice(256, 16, 512, whole_from=whole_from) == (
    "for a batch of 16 these would work: 128 devices as data x fsdp x spatial = 16x1x8 (rows whole from"
    " stage2 on); 16 devices as data=16; a batch of 256"
  )
  for first in ("stem0", "stage1_conv0", "entry0"):
    assert plan.advice(256, 16, 513, whole_from=lambda spatial, first=first: first) == (
      "for a batch of 16 these would work: 16 devices as data=16; a batch of 256"
    )
  # Micro-batches have to be spread, and their number has to divide the batch.
  assert plan.advice(8, 8, 64, micro_batches=4) == (
    "for a batch of 8 in 4 micro-batches these would work: meshes (data x fsdp x spatial) that use all 8"
    " devices: 2x1x4, 1x2x4, 1x1x8; 2 devices as data=2; a batch of 32"
  )
  assert plan.advice(8, 8, 64, micro_batches=3).endswith("these would work: a batch of 24")


SMOKE = "configs/colour_only_synthetic.py:smoke"


@pytest.mark.parametrize(
  ("topology", "sentence"),
  [
    ("v5f:4x4", r"there is no topology 'v5f:4x4'; did you mean 'v5"),
    ("v5e", "there is no topology 'v5e'"),
    ("v5e:4", "topology 'v5e:4': a slice of TPU v5e is v5e:AxB, such as v5e:16x16"),
    ("v4:4x4", "topology 'v4:4x4': a slice of TPU v4 is v4:AxBxC, such as v4:4x4x4"),
    ("v5e:4x0", "a slice of TPU v5e is v5e:AxB"),
    ("v5e:3x5", "there is no slice 'v5e:3x5'; the nearest is v5e:4x4, all: v5e:1x1, "),
    (
      "v5p:100x100x100",
      "there is no slice 'v5p:100x100x100', of 1,000,000 chips; a pod of TPU v5p has 8,960",
    ),
    ("v6e:32x16", "there is no slice 'v6e:32x16', of 512 chips; a pod of TPU v6e has 256"),
    ("gpu:8", "topology 'gpu:8': gpu means the GPUs of this machine and takes no number"),
    ("cpu:0", "topology 'cpu:0' is no number of devices; cpu is this machine"),
    ("cpu:-1", "topology 'cpu:-1' is no number of devices"),
    (" V5E:4 ", "topology 'v5e:4': a slice of TPU v5e is v5e:AxB"),
    ("tpu", "there is no topology 'tpu'"),
    ("cpu:3", "topology 'cpu:3' must be asked for before JAX has started a backend"),
  ],
)
def test_topologies_that_are_none(topology, sentence):
  jax.devices()
  with pytest.raises(ValueError, match=sentence):
    plan.open_topology(topology)


@pytest.mark.parametrize("name", ["v5e:4x4", " V5E:4X4"])
def test_without_the_compiler(name, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"topology 'v5e:4x4' .* pip install 'jaxseg\[tpu\]' brings it"):
    plan.open_topology(name)


def test_without_a_gpu(monkeypatch):
  def none(platform):
    raise RuntimeError(f"Unknown backend {platform}")

  monkeypatch.setattr(jax, "devices", none)
  sentence = "'gpu' means the GPUs of this machine, and JAX sees none; others: v4:4x4x4, .*, cpu$"
  with pytest.raises(ValueError, match=sentence):
    plan.open_topology("gpu")


def test_mesh_and_batch_that_do_not_divide():
  """The command, up to the compiler: one sentence with what would work."""
  command = [sys.executable, "-m", "jaxseg", "plan", f"--config={SMOKE}", "--topology=cpu:8"]
  done = subprocess.run(
    [*command, "--config.mesh.devices=0"],
    capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
  assert "a batch of 2 cannot be spread evenly over 8 device groups" in done.stderr
  assert "meshes (data x fsdp x spatial) that use all 8 devices: 2x1x4, 1x2x4, 1x1x8" in done.stderr
  assert "2 devices as data=2; a batch of 8" in done.stderr


def test_fewer_devices_than_none():
  config = config_lib.load(str(ROOT / SMOKE), overrides=[("mesh.devices", "-1")])
  with pytest.raises(ValueError, match=r"config.mesh.devices is -1; expected at least 0"):
    training_plan(config, "cpu")


def test_micro_batches_that_do_not_divide():
  """What `train.py` refuses, in its words."""
  config = config_lib.load(str(ROOT / SMOKE), overrides=[("batch_size", "3"), ("accumulate", "2")])
  with pytest.raises(
    ValueError, match=r"accumulate is 2, which does not cut config.batch_size 3 .*; for a batch"
  ):
    training_plan(config, "cpu")


def test_the_command_plans_the_step_that_trains(tmp_path, capsys):
  """From config to report on this machine, with no data set prepared; overrides reach the step."""
  config = ["--config.data.data_dir=" + str(tmp_path / "none"), "--config.batch_size=4"]
  dump = tmp_path / "step.hlo"
  cli.main(["plan", f"--config={ROOT / SMOKE}", "--topology=cpu", f"--dump={dump}", *config])
  said = capsys.readouterr().out
  assert "data 1, fsdp 1, spatial 1; 4 images of 64x64 a step, 4 a device group" in said
  assert "hosts" not in said and "rows" not in said and "evaluation" not in said  # of one device
  assert (
    ": fits (compiled" in said and "largest  a batch of about" in said and not (tmp_path / "none").exists()
  )
  cost = plan.count(plan.parse(dump.read_text()))
  # Three products a pixel, 3 -> 24 -> 24 -> 8: forward, by the weights, by the inputs (but for the image).
  pixels, layers = 4 * 64 * 64, [(3, 24), (24, 24), (24, 8)]
  products = [*layers, *layers, *layers[1:]]
  assert cost.flops == 2 * pixels * sum(n * m for n, m in products)
  # They read and write float32; normalisation, activations and the loss go over the same arrays a few times.
  least = 4 * pixels * sum(n + m for n, m in products)
  assert least < cost.nbytes < 6 * least and not cost.collectives


def test_hosts_and_what_they_read():
  """Four hosts of two devices: whole images a host, images that two share, an image over all of them."""
  devices = [types.SimpleNamespace(process_index=i // 2) for i in range(8)]

  def said(*shape, batch_size):
    mesh = types.SimpleNamespace(
      devices=np.array(devices).reshape(shape), shape=dict(zip(sharding.AXES, shape, strict=True))
    )
    return _hosts(mesh, batch_size)

  assert said(8, 1, 1, batch_size=16) == "4, 2 devices each, which read 4 of the 16 images"
  assert said(2, 1, 4, batch_size=2) == (
    "4, 2 devices each, which read 1 of the 2 images; an image lies on 2 hosts"
  )
  assert said(1, 1, 8, batch_size=3) == (
    "4, 2 devices each, which read 3 of the 3 images; an image lies on 4 hosts"
  )


def test_report_and_the_rates():
  """A roofline by hand: memory takes longest here, and a chip of two devices shares its rates."""
  devices = [jax.devices()[0]] * 4
  topology = Topology("v4:2x1x1", devices, TPUS["v4"], 2, 16 * GIB)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  cost = plan.Cost(
    flops=1e12, passes=1e12, nbytes=5e9, padded_bytes=6.14e9,
    collectives={"all-reduce": Collective(3, 1e8, 1.5e8)}, kernels={"tpu_custom_call": 2.0},
  )  # fmt: skip
  attempt = Attempt(8, Memory(2 * GIB, 3 * GIB, GIB, GIB), True, cost, seconds=9.0)
  seconds = plan.step_seconds(cost, TPUS["v4"], 2)
  np.testing.assert_allclose([seconds["compute"], seconds["memory"], seconds["links"]], [2 / 275, 0.01, 1e-3])
  text = "\n".join(report(topology, mesh, attempt, image=(64, 64), state={"parameters": GIB}))
  assert "5 GiB a device of 16 GiB: fits; 10 GiB a chip of 32 GiB" in text
  assert "all-reduce: 3, 100 MB, 150 MB sent by a device" in text
  assert "no less than 10 ms a step, 800 images/s, for memory" in text
  assert "expected" not in text  # no cycles, no estimate
  assert "tpu_custom_call 2 (their bytes are counted" in text
  # A step that waits for the vector unit is never called bound by memory, whatever its bytes say.
  for cycles, bound in ((10.5e6, "memory"), (105e6, "the vector unit")):
    slow = dataclasses.replace(attempt, cost=dataclasses.replace(cost, cycles=cycles))
    text = "\n".join(report(topology, mesh, slow, image=(64, 64), state={}))
    assert (
      f"{cycles / 1050e3:g} ms at 1.05 GHz" in text and f"bound by {bound}; kernels are not in it" in text
    )
  refused = Attempt(8, Memory(temporaries=20 * GIB), False, None, ("9 GiB f32[1] of sort",), 15.5 * GIB)
  text = "\n".join(report(topology, mesh, refused, image=(64, 64), state={"parameters": GIB}))
  assert (
    "does not fit" in text and "temporaries take 19 GiB beside 1 GiB of state" in text and "of sort" in text
  )
  text = "\n".join(report(topology, mesh, refused, image=(64, 64), state={"parameters": 17 * GIB}))
  assert "raise config.mesh.fsdp" in text
  largest = Largest(0, 8, None)
  text = "\n".join(report(topology, mesh, refused, image=(64, 64), state={}, largest=largest))
  assert "largest  not known: a batch of 8 does not fit, and the compiler does not say by how much" in text


_TPU = """
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxseg import plan, sharding
from jaxseg.ops.depthwise import depthwise_conv

topology = plan.open_topology("v5e:2x2")
one = sharding.replicated(sharding.make_mesh(devices=topology.devices[:1]))
lie = pl.CostEstimate(flops=7, bytes_accessed=7, transcendentals=0)
block = pl.BlockSpec((256, 1024), lambda i: (i, 0))


def double(x):
  def kernel(x, out):
    out[...] = x[...] * 2

  specs = dict(grid=(16,), in_specs=[block], out_specs=block)
  return pl.pallas_call(kernel, out_shape=x, cost_estimate=lie, **specs)(x)


x = jax.ShapeDtypeStruct((4096, 1024), jnp.float32)
compiled = jax.jit(double, in_shardings=one, out_shardings=one).lower(x).compile()
claimed = compiled.cost_analysis()["bytes accessed"]
cost = plan.count(plan.parse(compiled.as_text()))
assert claimed < 1000 and cost.nbytes == 2 * 4096 * 1024 * 4, (claimed, cost)

# v4: one device a chip, as on the real slice; and a step takes the branches of its platform.
v4 = plan.open_topology("v4:2x2x1")
assert (v4.chips, len(v4.devices), v4.per_chip) == (4, 4, 1)
gradient = jax.grad(lambda w, x: depthwise_conv(x, w, padding=((1, 1), (1, 1))).sum())
w, x = jax.ShapeDtypeStruct((3, 3, 1, 8), jnp.float32), jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32)
lowered = jax.jit(gradient, in_shardings=one, out_shardings=one).lower(w, x).as_text()
here = jax.jit(gradient).lower(w, x).as_text()
# XLA's own convolution there, a sum of taps here.
assert ["stablehlo.convolution" in text for text in (lowered, here)] == [True, False]
try:
  plan.open_topology("v5p:3x3x1")
except ValueError as error:
  assert "libtpu refuses the topology 'v5p:3x3x1'" in str(error), error
else:
  raise AssertionError
print("all equal")
"""


@pytest.mark.slow
def test_on_the_tpu_compiler():
  """A kernel whose claim the compiler repeats, and the platform's own branches, without a TPU."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed; pip install 'jaxseg[tpu]' brings it")
  done = subprocess.run(
    [sys.executable, "-c", _TPU], capture_output=True, text=True, check=False, cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
  )  # fmt: skip
  assert done.returncode == 0 and done.stdout.splitlines()[-1] == "all equal", done.stdout + done.stderr
