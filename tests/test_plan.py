"""What `jaxseg plan` counts, against programs whose FLOPs, bytes and exchanges can be counted by hand."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import cli, plan, sharding
from jaxseg.plan.arithmetic import _taps
from jaxseg.plan.cost import Collective
from jaxseg.plan.fit import Attempt, Memory, exhausted, largest_batch
from jaxseg.plan.hlo import Shape, shapes_of
from jaxseg.plan.meshes import working_meshes
from jaxseg.plan.report import report
from jaxseg.plan.topology import TPUS, Topology

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIB = 1 << 30


def counted(text: str) -> plan.Cost:
  return plan.count(plan.parse(text))


def module(*lines: str, header: str = "HloModule m, num_partitions=8") -> str:
  """A program of one entry computation; lines that hold a computation of their own come first."""
  return "\n".join([header, "", *lines, ""])


def entry(*lines: str) -> str:
  return "\n".join(["ENTRY %main (p: f32[1]) -> f32[1] {", *(f"  {line}" for line in lines), "}"])


def test_shapes_with_layouts_tiles_and_spaces():
  one, two = shapes_of("(bf16[3,200]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(256)})")
  assert (one.kind, one.dims, one.space, one.nbytes, two.nbytes) == ("bf16", (3, 200), 1, 1200, 4)
  assert one.padded_bytes == 8 * 256 * 2  # rows to a multiple of 8, columns to one of 128
  # The fastest varying dimension is the first here.
  assert shapes_of("f32[130,2]{0,1:T(8,128)}")[0].padded_bytes == 256 * 8 * 4
  assert [s.nbytes for s in shapes_of("(pred[8], s4[3], f8e4m3fn[5], token[], c64[2])")] == [8, 1.5, 5, 0, 16]
  assert Shape("f32", (2, 3)).padded_bytes == 24


def test_loop_of_products():
  """A scan of 7 products, as XLA writes it for this machine."""

  def function(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

  compiled = jax.jit(function).lower(jnp.zeros((64, 128)), jnp.zeros((128, 128))).compile()
  cost = counted(compiled.as_text())
  assert cost.flops == 7 * 2 * 64 * 128 * 128
  # Each trip reads and writes the carry for the product and for tanh, and reads the weights once.
  per_trip = 4 * (4 * 64 * 128 + 128 * 128)
  assert 7 * per_trip <= cost.nbytes <= 7 * per_trip + 4 * 2 * 64 * 128 + 1000
  assert cost.endless == 0 and not cost.collectives


def test_convolution_and_its_gradients():
  def function(w, x):
    y = jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(y**2)

  gradients = jax.jit(jax.grad(function, argnums=(0, 1)))
  compiled = gradients.lower(jnp.zeros((3, 3, 4, 8)), jnp.zeros((2, 16, 16, 4))).compile()
  # No padding: the forward pass and both gradients take the same products.
  assert counted(compiled.as_text()).flops == 3 * 2 * (2 * 14 * 14 * 8) * 9 * 4


def test_taps_on_padding_and_holes_are_no_work():
  assert _taps(16, 16, 3, 1, 1, 1, 1) == 3 * 16 - 2
  assert _taps(16, 16, 3, 1, 2, 1, 2) == 3 * 16 - 4
  # A batched product written as a convolution over the batch: every output meets one element.
  assert _taps(8, 8, 8, 7, 0, 8, 1) == 8
  # The input gradient of stride 2 costs what the forward pass costs.
  assert _taps(32, 16, 3, 1, 1, 2, 1) == _taps(16, 32, 3, 2, 1, 1, 1)


LOOP = """
%body (t: (s32[], f32[256,1024])) -> (s32[], f32[256,1024]) {
  %t = (s32[], f32[256,1024]{1,0}) parameter(0)
  %x = f32[256,1024]{1,0} get-tuple-element(%t), index=1
  %sum = f32[256,1024]{1,0} all-reduce(%x), replica_groups=GROUPS, to_apply=%add
  ROOT %r = (s32[], f32[256,1024]{1,0}) tuple(%i, %sum)
}

%condition (t.1: (s32[], f32[256,1024])) -> pred[] {
  %t.1 = (s32[], f32[256,1024]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %n = s32[] constant(5)
  ROOT %c = pred[] compare(%i.1, %n), direction=LT
}
"""


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("[4,2]<=[8]", 2),
    ("[4,2]<=[2,4]T(1,0)", 2),
    ("{}", 8),
    ("mesh['a'=2,'b'=4] {'b'}", 4),
    ("mesh['a'=8] {'a':(2)2}", 2),
  ],
)
@pytest.mark.parametrize("trips", ['backend_config={"known_trip_count":{"n":"5"}}', "metadata={}"])
def test_collectives_in_a_loop(groups, size, trips):
  """Trips are told by the loop, or by what its condition compares with; groups have three notations."""
  loop = f"%w = (s32[], f32[256,1024]{{1,0}}) while(%t), condition=%condition, body=%body, {trips}"
  cost = counted(
    module(LOOP.replace("GROUPS", groups), entry("%t = (s32[], f32[256,1024]) parameter(0)", loop))
  )
  array = 256 * 1024 * 4
  assert cost.collectives == {"all-reduce": Collective(5, 5 * array, 5 * array * 2 * (size - 1) / size)}
  assert cost.nbytes == 5 * (2 * array + 4 + 4 + 1)  # and the counter's comparison


def test_asynchronous_pairs_count_once():
  cost = counted(
    module(
      entry(
        "%p = f32[1024]{0} parameter(0)",
        "%g = (f32[1024]{0}, f32[8192]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}",
        "%h = f32[8192]{0} all-gather-done(%g)",
        "%s = (f32[1024]{0}, f32[1024]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=1",
        "%d = f32[1024]{0} collective-permute-done(%s)",
        "%c = (f32[1024]{0:S(1)}, f32[1024]{0}, u32[]) copy-start(%d)",
        "ROOT %e = f32[1024]{0:S(1)} copy-done(%c)",
      )
    )
  )
  assert cost.collectives["all-gather"] == Collective(1, 32768, 32768 * 7 / 8)
  assert cost.collectives["collective-permute"] == Collective(1, 4096, 4096)
  # The copy reads main memory and writes vector memory.
  assert cost.nbytes == (4096 + 32768) + 2 * 4096 + 4096


FUSED = """
%fused (a: f32[100,64], b: f32[64], c: f32[100,64], i: s32[]) -> (f32[64], f32[100,64]) {
  %a = f32[100,64]{1,0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %c = f32[100,64]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %zero = s32[] constant(0)
  %slice = f32[1,64]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,64}
  %row = f32[64]{0} bitcast(%slice)
  %sum = f32[64]{0} add(%row, %b)
  %update = f32[1,64]{1,0} bitcast(%sum)
  %whole = f32[100,64]{1,0} dynamic-update-slice(%c, %update, %i, %zero)
  ROOT %out = (f32[64]{0}, f32[100,64]{1,0}) tuple(%sum, %whole)
}
"""


def test_a_fusion_moves_what_it_touches():
  """Of arrays that a scan slices and fills, one row a trip and not the whole stack."""
  lines = [
    "%p = f32[100,64]{1,0} parameter(0)",
    "%q = f32[64]{0} parameter(1)",
    "%i = s32[] parameter(2)",
    "ROOT %f = (f32[64]{0}, f32[100,64]{1,0}) fusion(%p, %q, %p, %i), kind=kLoop, calls=%fused",
  ]
  assert counted(module(FUSED, entry(*lines))).nbytes == 4 * 64 * 4 + 4
  # Where the array is also read whole, it is moved whole.
  whole = FUSED.replace(
    "%row = f32[64]{0} bitcast(%slice)", "%row = f32[64]{0} reduce(%a, %zero), dimensions={0}"
  )
  assert counted(module(whole, entry(*lines))).nbytes == (100 * 64 + 3 * 64) * 4 + 4


def test_a_kernel_that_lies():
  """A kernel's bytes are those of its shapes, whatever its cost estimate claims."""
  lie = r'backend_config={"custom_call_config":{"cost_estimate":{"flops":"7","bytes_accessed":"7"}}}'
  cost = counted(
    module(
      entry(
        "%p = f32[4096,1024]{1,0:T(8,128)} parameter(0)",
        "%q = bf16[128]{0:T(256)S(1)} parameter(1)",
        'ROOT %k = f32[4096,1024]{1,0:T(8,128)} custom-call(%p, %q), custom_call_target="tpu_custom_call", '
        + lie,
      )
    )
  )
  assert cost.nbytes == 2 * 4096 * 1024 * 4
  assert cost.kernels == {"tpu_custom_call": 1} and cost.flops == 0


def test_precision_and_library_calls():
  dot = "%d = f32[8,32]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
  operands = ["%p = f32[8,16]{1,0} parameter(0)", "%q = f32[16,32]{1,0} parameter(1)"]
  cost = counted(module(entry(*operands, dot + ", operand_precision={highest,highest}")))
  assert (cost.flops, cost.passes) == (2 * 8 * 16 * 32, 6 * 2 * 8 * 16 * 32)
  assert counted(module(entry(*operands, dot))).passes == 2 * 8 * 16 * 32
  gemm = (
    '%g = (f32[8,32]{1,0}, s8[4096]{0}) custom-call(%p, %q), custom_call_target="__cublas$gemm", '
    'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
  )
  assert counted(module(entry(*operands, gemm))).flops == 2 * 8 * 16 * 32
  images = ["%p = f32[2,16,16,4]{3,2,1,0} parameter(0)", "%q = f32[8,3,3,4]{3,2,1,0} parameter(1)"]
  conv = (
    "%c = (f32[2,16,16,8]{3,2,1,0}, u8[0]{0}) custom-call(%p, %q), window={size=3x3 pad=1_1x1_1}, "
    'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"'
  )
  assert counted(module(entry(*images, conv))).flops == 2 * (2 * 16 * 16 * 8) * 9 * 4


def test_branches_calls_and_unknown_loops():
  product = (
    "  %d{0} = f32[8,{1}]{{1,0}} dot(%a{0}, %b{0}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
  )
  branch = (
    "%branch{0} (t{0}: (f32[8,16], f32[16,{1}])) -> f32[8,{1}] {{\n"
    "  %a{0} = f32[8,16]{{1,0}} parameter(0)\n  %b{0} = f32[16,{1}]{{1,0}} parameter(1)\n"
    + product
    + "\n}}\n"
  )
  text = branch.format(0, 4) + branch.format(1, 32)
  choice = "%x = f32[8] conditional(%i, %t, %t), branch_computations={%branch0, %branch1}"
  assert counted(module(text, entry(choice))).flops == 2 * 8 * 16 * 32  # the dearer one
  assert counted(module(text, entry("%x = f32[8] call(%t), to_apply=%branch0"))).flops == 2 * 8 * 16 * 4
  endless = LOOP.replace("direction=LT", "direction=NE").replace("GROUPS", "{}")
  cost = counted(module(endless, entry("%w = f32[1] while(%t), condition=%condition, body=%body")))
  assert (cost.endless, cost.collectives["all-reduce"].count) == (1, 1)


def test_not_a_program():
  with pytest.raises(ValueError, match=r"no ENTRY computation; give what compiled.as_text\(\) returns"):
    plan.parse("HloModule nothing\n")


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
  # Without compilations: an estimate, in the same region.
  if told:
    guess = largest_batch(compile_at(first), compile_at, unit=unit, memory=limit, compiles=0).estimate
    assert 0.75 * truth < guess < 1.25 * truth


def test_meshes_that_work():
  assert list(working_meshes(4, 4, 64)) == [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)]
  assert (16, 1, 16) in set(working_meshes(256, 16, 512)) and (16, 1, 1) not in set(
    working_meshes(16, 8, 512)
  )
  assert all(16 % (d * f) == 0 and d * f * s == 256 for d, f, s in working_meshes(256, 16, 512))


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
    ("gpu", "means the GPUs of this machine, and JAX sees none"),
    ("tpu", "there is no topology 'tpu'"),
  ],
)
def test_topologies_that_are_none(topology, sentence):
  with pytest.raises(ValueError, match=sentence):
    plan.open_topology(topology)


def test_without_the_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'jaxseg\[tpu\]' brings it"):
    plan.open_topology("v5e:4x4")


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


def test_the_command_plans_the_step_that_trains(tmp_path, capsys):
  """From config to report on this machine, with no data set prepared; overrides reach the step."""
  config = ["--config.data.data_dir=" + str(tmp_path / "none"), "--config.batch_size=4"]
  dump = tmp_path / "step.hlo"
  cli.main(["plan", f"--config={ROOT / SMOKE}", "--topology=cpu", f"--dump={dump}", *config])
  said = capsys.readouterr().out
  assert "data 1, fsdp 1, spatial 1; 4 images of 64x64 a step, 4 a device group" in said
  assert "fits" in said and "largest  a batch of about" in said and not (tmp_path / "none").exists()
  cost = counted(dump.read_text())
  # The last layer alone: 4 images, forward and weight gradient at least.
  assert cost.flops > 0 and cost.nbytes > 4 * 64 * 64 * 3 and not cost.collectives


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
  assert "10 ms a step, 800 images/s, bound by memory" in text
  assert "tpu_custom_call 2 (their bytes are counted" in text
  refused = Attempt(8, Memory(temporaries=20 * GIB), False, None, ("9 GiB f32[1] of sort",), 15.5 * GIB)
  text = "\n".join(report(topology, mesh, refused, image=(64, 64), state={"parameters": GIB}))
  assert (
    "does not fit" in text and "temporaries take 19 GiB beside 1 GiB of state" in text and "of sort" in text
  )
  text = "\n".join(report(topology, mesh, refused, image=(64, 64), state={"parameters": 17 * GIB}))
  assert "raise config.mesh.fsdp" in text


_TPU = """
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxseg import plan, sharding
from jaxseg.kernels.depthwise import depthwise_conv

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
# One reduction a tap there, folded sums here.
assert [text.count("stablehlo.reduce") for text in (lowered, here)] == [9, 1]
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
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
  )  # fmt: skip
  assert done.returncode == 0 and done.stdout.splitlines()[-1] == "all equal", done.stdout + done.stderr
