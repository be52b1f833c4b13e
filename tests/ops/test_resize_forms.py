"""Every form of the resize against its definition: values, gradients, float32 and bfloat16, odd sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import resize as ops

SIZES = [((5, 7), (20, 28)), ((9, 3), (4, 5)), ((1, 6), (3, 6))]
FORMS = {"chosen": ops.resize, "matrices": ops.resize_by_matrices}
CASES = [(form, *sizes, corners) for form in FORMS for sizes in SIZES for corners in (False, True)]
# Only whole factors of the plain corner rule have phases.
WHOLE = {"phases": ops.resize_by_phases, "gathers": ops.resize_by_gathers}
CASES += [(form, *sizes, False) for form in WHOLE for sizes in (SIZES[0], SIZES[2])]
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


def value_and_gradient(function, x, weights):
  y, pull = jax.vjp(function, x)
  return y, *pull(weights.astype(y.dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("form", "before", "after", "align_corners"), CASES)
def test_form_equals_the_definition(form, before, after, align_corners, dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, *before, 3)), dtype)
  weights = jnp.asarray(rng.standard_normal((2, *after, 3)), dtype)
  if form in WHOLE:
    function = lambda x: WHOLE[form](x, after)  # noqa: E731
  else:
    function = lambda x: FORMS[form](x, after, align_corners=align_corners)  # noqa: E731
  exact = lambda x: ops.resize_reference(x, after, align_corners=align_corners)  # noqa: E731
  ours = jax.jit(lambda x: value_and_gradient(function, x, weights))(x)
  # bfloat16 is held against the definition in float32, so that its own rounding is what is measured.
  wide = (x.astype(jnp.float32), weights.astype(jnp.float32))
  for a, b in zip(ours, value_and_gradient(exact, *wide), strict=True):
    assert a.dtype == dtype
    np.testing.assert_allclose(np.float32(a), b, atol=TOLERANCE[dtype] * float(np.abs(b).max()))


def test_bfloat16_gradients_accumulate_in_float32():
  """4,096 ones: a sum kept in bfloat16 would stop at 256."""
  gradient = jax.grad(lambda x: ops.resize_by_matrices(x, (64, 64)).astype(jnp.float32).sum())
  np.testing.assert_allclose(np.float32(gradient(jnp.ones((1, 1, 1, 1), jnp.bfloat16)))[0, 0, 0, 0], 4096)


def test_forward_mode_works():
  x = jnp.arange(12.0).reshape(1, 3, 4, 1)
  for function in (*FORMS.values(), *WHOLE.values()):
    _, tangent = jax.jvp(lambda x, f=function: f(x, (6, 8)), (x,), (x,))
    np.testing.assert_allclose(tangent, ops.resize_reference(x, (6, 8)), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_sum_of_resized_maps_is_one_product(align_corners, dtype):
  rng = np.random.default_rng(0)
  maps = [jnp.asarray(rng.standard_normal((2, *size, 3)), dtype) for size in ((4, 5), (3, 2), (1, 7))]
  weights = jnp.asarray(rng.standard_normal((2, 8, 10, 3)), dtype)

  def run(function, maps):
    y, pull = jax.vjp(lambda *x: function(x, (8, 10), align_corners=align_corners), *maps)
    return y, *pull(weights.astype(y.dtype))

  ours = jax.jit(lambda x: run(ops.resize_sum_by_matrices, x))(maps)
  theirs = jax.jit(lambda x: run(ops.resize_sum_reference, x))([x.astype(jnp.float32) for x in maps])
  for a, b in zip(ours, theirs, strict=True):
    assert a.dtype == dtype
    np.testing.assert_allclose(np.float32(a), b, atol=TOLERANCE[dtype] * float(np.abs(b).max()))
