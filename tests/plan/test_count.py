"""FLOPs, bytes and exchanges of programs in which they can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg import plan
from jaxseg.plan.arithmetic import _taps
from jaxseg.plan.exchange import Collective
from jaxseg.plan.hlo import Shape, shapes_of


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
    ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", 4),
    ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0','axis_1'}", 8),
  ],
)
@pytest.mark.parametrize("trips", ['backend_config={"known_trip_count":{"n":"5"}}', "metadata={}"])
def test_collectives_in_a_loop(groups, size, trips):
  """Trips are told by the loop, or by what its condition compares with; groups have several notations."""
  loop = f"%w = (s32[], f32[256,1024]{{1,0}}) while(%t), condition=%condition, body=%body, {trips}"
  cost = counted(
    module(LOOP.replace("GROUPS", groups), entry("%t = (s32[], f32[256,1024]) parameter(0)", loop))
  )
  array = 256 * 1024 * 4
  assert cost.collectives == {"all-reduce": Collective(5, 5 * array, 5 * array * 2 * (size - 1) / size)}
  assert cost.nbytes == 5 * (2 * array + 4 + 4 + 1)  # and the counter's comparison


def test_groups_of_no_axis():
  text = module(
    LOOP.replace("GROUPS", "mesh['a'=8] {}"), entry("%w = f32[1] while(%t), condition=%condition, body=%body")
  )
  with pytest.raises(ValueError, match=r"replica groups .* of sum name no axis"):
    counted(text)


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


# As a TPU's compiler writes a gather that runs beside a product.
GATHER = "all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}"
BESIDE = """
%start (p: f32[1]) -> f32[1] {
  %p = f32[8,64] parameter(0)
  %g = f32[32,64] GATHER
  ROOT %b = (f32[8,64], f32[32,64], u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%beside (p: f32[1]) -> f32[1] {
  %p = f32[8,64] parameter(0)
  %to = f32[32,64] parameter(1)
  %c = u32[]{:S(2)} parameter(2)
  %x = f32[16,64] parameter(3)
  %w = f32[64,4] parameter(4)
  %y = f32[16,4] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g = f32[32,64] GATHER
  ROOT %t = (f32[16,4], f32[8,64], f32[32,64], f32[32,64], u32[]{:S(2)}) tuple(%y, %p, %to, %g, %c)
}

%end (p: f32[1]) -> f32[1] {
  %p = f32[8,64] parameter(0)
  %to = f32[32,64] parameter(1)
  %c = u32[]{:S(2)} parameter(2)
  %g = f32[32,64] GATHER
  ROOT %e = f32[32,64] custom-call(%p, %to, %g, %c), custom_call_target="AsyncCollectiveDone"
}
""".replace("GATHER", GATHER)


def test_a_collective_beside_other_work_counts_once():
  """It stands in three fusions; the arrays that are handed from one to the next are not moved by that."""
  cost = counted(
    module(
      BESIDE,
      entry(
        "%p = f32[8,64] parameter(0)",
        "%x = f32[16,64] parameter(1)",
        "%w = f32[64,4] parameter(2)",
        "%a = (f32[8,64], f32[32,64], u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%start",
        "%a0 = f32[8,64] get-tuple-element(%a), index=0",
        "%a1 = f32[32,64] get-tuple-element(%a), index=1",
        "%a2 = u32[]{:S(2)} get-tuple-element(%a), index=2",
        "%m = (f32[16,4], f32[8,64], f32[32,64], f32[32,64], u32[]{:S(2)})"
        " fusion(%a0, %a1, %a2, %x, %w), kind=kOutput, calls=%beside",
        "%m1 = f32[8,64] get-tuple-element(%m), index=1",
        "%m3 = f32[32,64] get-tuple-element(%m), index=3",
        "%m4 = u32[]{:S(2)} get-tuple-element(%m), index=4",
        "%d = f32[32,64] fusion(%m1, %m3, %m4), kind=kCustom, calls=%end",
        # Not fused, so another one, though it has the same channel.
        f"ROOT %z = f32[32,64] {GATHER}",
      ),
    )
  )
  one = Collective(1, 8192, 8192 * 3 / 4)
  assert cost.collectives == {"all-gather": one + one} and not cost.kernels
  assert cost.flops == 2 * 16 * 64 * 4
  assert cost.nbytes == 2 * 4 * (8 * 64 + 32 * 64) + 4 * (16 * 64 + 64 * 4 + 16 * 4)


@pytest.mark.parametrize(
  ("plain", "kernels"),
  [
    ("fusion(%p, %q), kind=kLoop, calls=%f", {}),
    ("call(%p, %q), to_apply=%f", {}),
    ("dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}", {}),
    ('custom-call(%p, %q), custom_call_target="tpu_custom_call"', {"tpu_custom_call": 1}),
  ],
)
def test_anything_may_run_asynchronously(plain, kernels):
  """`fusion-start` is a fusion that something else waits for: the same work, the same bytes."""
  product = "dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
  inner = (
    "%f (a: f32[8,16], b: f32[16,32]) -> f32[8,32] {\n  %a = f32[8,16]{1,0} parameter(0)\n"
    f"  %b = f32[16,32]{{1,0}} parameter(1)\n  ROOT %d = f32[8,32]{{1,0}} {product}\n}}\n"
  )
  operands = ["%p = f32[8,16]{1,0} parameter(0)", "%q = f32[16,32]{1,0} parameter(1)"]
  started = "%s = ((f32[8,16]{1,0}, f32[16,32]{1,0}), f32[8,32]{1,0}, u32[]{:S(2)}) " + plain.replace(
    "(", "-start(", 1
  )
  done = f"ROOT %e = f32[8,32]{{1,0}} {plain.partition('(')[0]}-done(%s)"
  cost = counted(module(inner, entry(*operands, started, done)))
  assert cost == counted(module(inner, entry(*operands, f"ROOT %s = f32[8,32]{{1,0}} {plain}")))
  assert cost.nbytes == 4 * (8 * 16 + 16 * 32 + 8 * 32) and cost.kernels == kernels
  assert cost.flops == (0 if kernels else 2 * 8 * 16 * 32)


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


_ESTIMATED = """
HloModule m

%fused (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %e = f32[8,128]{1,0} exponential(%p), backend_config={"window_config":{"estimated_cycles":"9999"}}
}

%body (c: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %c = (s32[], f32[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%c), index=1
  %twice = f32[8,128]{1,0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/while/exp"}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %t = (s32[], f32[8,128]{1,0}) tuple(%i, %twice)
}

%condition (c: (s32[], f32[8,128])) -> pred[] {
  %c = (s32[], f32[8,128]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: (s32[], f32[8,128])) -> f32[8,128] {
  %x = (s32[], f32[8,128]{1,0}) parameter(0)
  %loop = (s32[], f32[8,128]{1,0}) while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  %y = f32[8,128]{1,0} get-tuple-element(%loop), index=1
  ROOT %z = f32[8,128]{1,0} fusion(%y), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"30"}}
}
""".replace("\\\n", "")


def test_estimated_cycles_and_the_largest_instructions():
  """The compiler's cycles count by the trips of the loop, and those inside of a fusion not again."""
  program = plan.parse(_ESTIMATED)
  cost = plan.count(program)
  assert cost.cycles == 7 * 100 + 30
  first, second = plan.largest(program, 2)
  assert (first.name, first.times, first.cost.cycles, first.source) == ("twice", 7, 700, "jit(f)/while/exp")
  assert first.cost.padded_bytes == 7 * 2 * 8 * 128 * 4 and first.result == "f32[8,128]"
  assert (second.name, second.times, second.source) == ("z", 1, "")
  total = sum(item.cost.padded_bytes for item in plan.largest(program, 100))
  assert total == cost.padded_bytes
