"""Every form of every operation is its definition: values, gradients, float32, bfloat16, odd sizes, halo.

A form that an accelerator would take is called directly, on the CPU; a Pallas kernel by `interpret=True`.
A new form is one line of its operation's cases.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import (
  atrous,
  batch_norm,
  depthwise,
  gelu,
  layer_norm,
  msca,
  packed_conv,
  patch_conv,
  stem_conv,
)
from jaxseg.ops.definition import PLATFORMS, plain_definitions


class Case(NamedTuple):
  """An operation at one shape.

  Attributes:
    definition: arrays → array.
    forms: name → the same by one form.
    arrays: what they take, float32.
    roundings: values that bfloat16 rounds on the way to a result: 1 is "summed in float32, rounded once".
  """

  definition: Callable
  forms: dict[str, Callable]
  arrays: tuple[jax.Array, ...]
  roundings: int = 1


def normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


WINDOWS = {
  "3x3 rate 4": ((3, 3), dict(padding=((4, 4), (4, 4)), dilation=(4, 4))),
  "5x5 halo": ((5, 5), dict(padding=((0, 0), (2, 2)))),
  "1x21": ((1, 21), dict(padding=((0, 0), (10, 10)))),
  "21x1 halo": ((21, 1), dict(padding=((0, 0), (0, 0)))),
  "1x7 wider than the map": ((1, 7), dict(padding=((0, 0), (30, 30)), dilation=(1, 10))),
  "7x1 rate 2, stride 3": ((7, 1), dict(padding=((5, 6), (0, 0)), dilation=(2, 1), strides=(3, 1))),
  "3x3 cropped": ((3, 3), dict(padding=((-1, 2), (1, -3)))),
  "3x3 stride 2, uneven": ((3, 3), dict(padding=((0, 1), (0, 1)), strides=(2, 2))),
  "2x3, stride (1, 3), rate (3, 1)": (
    (2, 3),
    dict(padding=((2, 0), (1, 2)), strides=(1, 3), dilation=(3, 1)),
  ),
}


def depthwise_cases():
  for name, (size, fields) in WINDOWS.items():
    given = dict(strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1)) | fields
    window = depthwise.Window(given["strides"], given["padding"], given["dilation"])
    names = [form for form in depthwise.FORMS if form != "banded" or 1 in size]
    channels = 48 if window.strides == (1, 1) else 3  # a block and a half of the kernel, or what it refuses
    if channels == 3:
      names.remove("kernel")
    forms = {form: functools.partial(depthwise_as, form, window) for form in names}
    definition = functools.partial(depthwise.depthwise_conv_reference, **fields)
    yield (
      f"depthwise {name}",
      Case(definition, forms, (normal(0, 2, 23, 14, channels), normal(1, *size, 1, channels))),
    )


def depthwise_as(form, window, x, kernel):
  return depthwise.depthwise_conv_as(form, x, kernel, window)


def atrous_cases():
  # Rates inside the map, larger than its rows, larger than both, and a map of one row.
  for rows, rate, halo in [(9, 4, False), (9, 10, True), (9, 24, False), (1, 3, True)]:
    window = atrous.Window(rate, halo)
    forms = {form: functools.partial(atrous_as, form, window) for form in atrous.FORMS}
    definition = functools.partial(atrous.atrous_conv_reference, rate=rate, has_halo=halo)
    arrays = normal(0, 2, rows + 2 * rate * halo, 13, 6), normal(1, 3, 3, 6, 4) / 7
    yield f"atrous {rows} rows, rate {rate}{' halo' * halo}", Case(definition, forms, arrays)


def atrous_as(form, window, x, kernel):
  return atrous.atrous_conv_as(form, x, kernel, window)


def batch_norm_cases():
  scale, bias, slope = 1 + 0.3 * normal(1, 7), normal(2, 7), 0.25 + 0.1 * normal(3, 7)
  # A running mean that is near the batch's, and one that is as far off as at the first step.
  for name, shift, slopes in [("none", 2.5, ()), ("ReLU", 0.0, (0 * slope,)), ("PReLU", 2.5, (slope,))]:
    fields = dict(epsilon=1e-3, shift=jnp.full(7, shift))
    forms = {
      form: functools.partial(batch_norm_as, functools.partial(batch_norm.batch_norm_act_as, form), fields)
      for form in batch_norm.FORMS
    }
    definition = functools.partial(batch_norm_as, batch_norm.batch_norm_act_reference, fields)
    arrays = 3 + 2 * normal(0, 4, 6, 5, 7), scale, bias, *slopes
    yield f"batch_norm {name}, shift {shift}", Case(definition, forms, arrays)


def packed_cases():
  """Narrow maps, of which four or two columns fill the lanes, alone and joined with one that does not fit."""
  slope = 0.25 + 0.1 * normal(3, 32)
  fields = dict(epsilon=1e-3, shift=jnp.full(32, 2.5))
  packed = functools.partial(batch_norm.batch_norm_act_as, "packed")
  definition, form = (
    functools.partial(batch_norm_as, function, fields)
    for function in (batch_norm.batch_norm_act_reference, packed)
  )
  arrays = 3 + 2 * normal(0, 2, 5, 8, 32), 1 + 0.3 * normal(1, 32), normal(2, 32), slope
  yield "batch_norm packed", Case(definition, {"packed": form}, arrays)
  for name, channels, k, size, strides, padding in [
    ("3x3", (32,), 32, (3, 3), (1, 1), ((1, 1), (1, 1))),
    ("5x5 to two columns, halo", (64,), 64, (5, 5), (1, 1), ((0, 0), (2, 2))),
    ("3x3 stride 2, joined", (32, 3, 64, 20), 64, (3, 3), (2, 2), ((1, 1), (1, 1))),
    ("2x2, which is not centred", (32,), 8, (2, 2), (1, 1), ((0, 1), (0, 1))),
    ("3x3 of thin maps to wide ones", (3,), 32, (3, 3), (1, 1), ((1, 1), (1, 1))),
  ]:
    fields = dict(strides=strides, padding=padding)
    definition, form = (
      functools.partial(joined_conv, functools.partial(function, **fields))
      for function in (packed_conv.packed_conv_reference, packed_conv.by_columns)
    )
    maps = tuple(normal(i, 2, 6, 8, c) for i, c in enumerate(channels))
    kernel = normal(9, *size, sum(channels), k) / (size[0] * size[1])
    # Maps that are joined are sums of rounded terms.
    roundings = 1 + len(channels)
    yield f"packed_conv {name}", Case(definition, {"columns": form}, (*maps, kernel), roundings=roundings)


def joined_conv(function, *arrays):
  return function(arrays[:-1], arrays[-1])


def batch_norm_as(function, fields, x, scale, bias, slope=None):
  # The parameters stay float32, as in the layer.
  scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
  slope = None if slope is None else slope.astype(jnp.float32)
  return function(x, scale, bias, slope, **fields)[0]


def pointwise_cases():
  """GELU and LayerNorm, whose forms differ from the definition in the derivative alone."""
  yield "gelu", Case(gelu.gelu_reference, {"own derivative": gelu.gelu}, (3 * normal(0, 5, 41),))

  def normed(function, x, scale, bias):
    return function(x, scale.astype(jnp.float32), bias.astype(jnp.float32), epsilon=1e-3)

  functions = layer_norm.layer_norm_reference, layer_norm.layer_norm
  definition, own = (functools.partial(normed, function) for function in functions)
  arrays = 3 + 2 * normal(0, 2, 3, 41), 1 + 0.3 * normal(1, 41), normal(2, 41)
  yield "layer_norm", Case(definition, {"own derivative": own}, arrays)


def patch_conv_cases():
  # Whole windows, windows of unequal sides, and a map whose last rows and columns are no whole window.
  for name, h, w, size in [("whole", 8, 12, (4, 4)), ("2x3", 8, 12, (2, 3)), ("uneven", 11, 10, (4, 4))]:
    arrays = normal(0, 2, h, w, 6), normal(1, *size, 6, 5) / 9
    forms = {"product": patch_conv.patch_conv}
    yield f"patch_conv {name}", Case(patch_conv.patch_conv_reference, forms, arrays)


def stem_conv_cases():
  # Of an image, of rows that come from a neighbour (and are cropped), and at stride 1 of an even kernel.
  for name, size, strides, padding in [
    ("7x7 stride 4", (7, 7), (4, 4), ((3, 3), (3, 3))),
    ("3x3 halo", (3, 3), (2, 2), ((0, -1), (1, 1))),
    ("2x3", (2, 3), (1, 2), ((1, 0), (0, 2))),
  ]:
    fields = dict(strides=strides, padding=padding)
    forms = {form.__name__: functools.partial(form, **fields) for form in (stem_conv.by_rows,)}
    definition = functools.partial(stem_conv.stem_conv_reference, **fields)
    arrays = normal(0, 2, 13, 17, 3), normal(1, *size, 3, 5) / 9
    # The input's gradient is a sum of two, where windows overlap in the rows.
    yield f"stem_conv {name}", Case(definition, forms, arrays, roundings=2)


def msca_cases():
  for name, lengths, around in [("two", (3, 5), True), ("one", (3,), False)]:
    sizes = [(5, 5), *(size for k in lengths for size in ((1, k), (k, 1)))]
    weights = [x for i, s in enumerate(sizes) for x in (normal(i, *s, 1, 3) / s[0], normal(90 + i, 3))]
    halo = msca.msca_halo(5, lengths)
    # Four rows of the device lie below the image.
    rows, padding = 13 + 2 * halo * around, halo - 2
    inside = jnp.arange(rows - 4) + 2 < rows - padding - 4 if around else None
    forms = {"by platform": functools.partial(msca_as, inside)}
    definition = functools.partial(plain_msca, inside)
    arrays = normal(50, 2, rows, 14, 3), *weights
    yield f"msca {name}{' halo' * around}", Case(definition, forms, arrays, roundings=3)


def msca_as(inside, x, *weights):
  pairs = list(zip(weights[::2], weights[1::2], strict=True))
  return msca.msca(x, pairs[0], list(zip(pairs[1::2], pairs[2::2], strict=True)), inside=inside)


def plain_msca(inside, x, *weights):
  with plain_definitions():
    return msca_as(inside, x, *weights)


CASES = dict(
  [
    *depthwise_cases(),
    *atrous_cases(),
    *batch_norm_cases(),
    *packed_cases(),
    *pointwise_cases(),
    *patch_conv_cases(),
    *stem_conv_cases(),
    *msca_cases(),
  ]
)
FLOAT32 = jnp.dtype("float32")
# Numbers are the point here, and not how fast they come.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def value_and_gradients(function, arrays):
  """The result, and the gradient of its sum with fixed random weights, of every array."""

  def run(*arrays):
    y, pull = jax.vjp(function, *arrays)
    return y, *pull(normal(7, *y.shape).astype(y.dtype))

  return jax.jit(run, compiler_options=QUICK)(*arrays)


@functools.cache
def expected(name: str, dtype: str):
  """By the definition in float32, of the arrays (and the cotangent) as the dtype holds them."""
  case = CASES[name]
  arrays = [x.astype(dtype).astype(jnp.float32) for x in case.arrays]

  def run(*arrays):
    y, pull = jax.vjp(case.definition, *arrays)
    return y, *pull(normal(7, *y.shape).astype(dtype).astype(jnp.float32))

  return jax.jit(run, compiler_options=QUICK)(*arrays)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name, form", [(name, form) for name, case in CASES.items() for form in case.forms])
def test_a_form_is_its_definition(name, form, dtype):
  case = CASES[name]
  ours = value_and_gradients(case.forms[form], [x.astype(dtype) for x in case.arrays])
  unit = 2.0**-8 * case.roundings if dtype == "bfloat16" else 0.0
  for i, (mine, wanted) in enumerate(zip(ours, expected(name, dtype), strict=True)):
    assert mine.shape == wanted.shape and mine.dtype == dtype, i
    wanted = np.asarray(wanted)
    allowed = 1e-5 * np.abs(wanted).max() + 1e-7
    if case.roundings > 1 and unit:
      allowed += unit * np.abs(wanted).max()  # a rounded intermediate is not small where the result is
    np.testing.assert_array_less(np.abs(np.float32(mine) - wanted) - unit * np.abs(wanted), allowed, f"{i}")


@pytest.mark.parametrize("form", depthwise.FORMS)
def test_long_bfloat16_sums_are_float32(form):
  """What a sum in bfloat16 loses: ones beyond 256 in a weight's gradient, and 1/256 beside 1 in a strip."""
  x, kernel = jnp.ones((4, 16, 16, 2), jnp.bfloat16), jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  window = depthwise.Window((1, 1), ((0, 0), (0, 0)), (1, 1))

  def total(kernel):
    return depthwise_as(form, window, x, kernel).astype(jnp.float32).sum()

  np.testing.assert_array_equal(np.float32(jax.jit(jax.grad(total))(kernel)), 4 * 16 * 16)
  strip = jnp.full((1, 7, 1, 2), 1 / 256, jnp.bfloat16).at[0, 3].set(1.0)
  window = depthwise.Window((1, 1), ((0, 0), (3, 3)), (1, 1))
  # 1 + 6/256 rounded once is 1 + 6/256, which the sum tap by tap would leave at 1.
  y = jax.jit(functools.partial(depthwise_as, form, window))(x[:1, :1], strip)[0, 0, 8]
  np.testing.assert_array_equal(np.float32(y), np.float32(jnp.bfloat16(1 + 6 / 256)))


KEEPERS = {
  **{
    f"batch_norm, {form}": functools.partial(batch_norm.batch_norm_act_as, form, slope=None, epsilon=1e-3)
    for form in batch_norm.FORMS
  },
  "layer_norm": functools.partial(layer_norm.layer_norm, epsilon=1e-3),
  "gelu": lambda x, scale, bias: gelu.gelu(x),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_the_derivative_keeps_the_input_only(name):
  x, c = jnp.ones((2, 8, 8, 4), jnp.bfloat16), jnp.ones(4)
  _, pull = jax.vjp(lambda x: KEEPERS[name](x, scale=c, bias=c), x)
  large = [leaf for leaf in jax.tree.leaves(pull) if getattr(leaf, "size", 0) >= x.size]
  assert len(large) == 1 and large[0].dtype == jnp.bfloat16


def test_every_choice_is_a_form_that_can_do_it():
  """Of strips and squares, strided or not, on every platform."""
  for platform in PLATFORMS:
    for size, fields in WINDOWS.values():
      strides = fields.get("strides", (1, 1))
      window = depthwise.Window(strides, ((0, 0), (0, 0)), (1, 1))
      form = depthwise.choose_form(platform, FLOAT32, (2, 23, 26, 5), size, window)
      assert form in depthwise.FORMS and (form != "banded" or 1 in size), (platform, size)
    assert batch_norm.CHOICE[platform] in batch_norm.FORMS
  assert depthwise.choose_form("cpu", FLOAT32, (1, 9, 9, 1), (3, 3), window) == "taps"
  choose = functools.partial(atrous.choose_form, "cpu", FLOAT32)
  assert choose((64, 64), (3, 3, 2048, 512), 36) == choose((64, 64), (3, 3, 512, 21), 24) == "taps"
  assert choose((64, 64), (3, 3, 256, 256), 2) == "lax"


@pytest.mark.parametrize("platform, convolutions", [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_the_choice_is_made_for_the_platform_that_is_compiled_for(platform, convolutions):
  """Also where the program is exported for another machine than this one."""
  run = jax.jit(functools.partial(depthwise.depthwise_conv, padding=((1, 1), (1, 1))))
  shapes = jax.ShapeDtypeStruct((1, 9, 9, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)
  text = jax.export.export(run, platforms=[platform])(*shapes).mlir_module()
  assert text.count("stablehlo.convolution") == convolutions


def test_plain_definitions_have_a_forward_derivative():
  """`jax.jvp` refuses a reverse rule of our own; inside `plain_definitions` it is the derivative."""
  x, kernel = normal(0, 1, 9, 11, 4), normal(1, 3, 3, 1, 4)
  run = functools.partial(depthwise.depthwise_conv, padding=((1, 1), (1, 1)))
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(run, (x, kernel), (x, kernel))
  with plain_definitions():
    y, tangent = jax.jvp(run, (x, kernel), (x, kernel))
  np.testing.assert_allclose(tangent, 2 * y, rtol=1e-5)  # bilinear
