"""The GPU kernel of the upsampled cross entropy, interpreted, against the full-size map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.ops import definition, depthwise, depthwise_kernel, softmax_kernel_gpu
from jaxseg.ops.resize import resize_reference
from jaxseg.ops.upsampled import choose_form
from jaxseg.ops.upsampled_cross_entropy import softmax_kernels_for


def definition_terms(logits, labels):
  """(log normaliser, true logit or 0) of the full-size map."""
  logits = resize_reference(logits.astype(jnp.float32), labels.shape[1:])
  target = labels[..., None] == jnp.arange(logits.shape[-1])
  return jax.nn.logsumexp(logits, -1), jnp.sum(jnp.where(target, logits, 0.0), -1)


# One block of classes, two of which the second is mostly filled up, three; columns of several programs; a map
# of one pixel, of which every neighbour is itself.
@pytest.mark.parametrize(
  ("dtype", "shape", "factors"),
  [
    (jnp.float32, (2, 5, 7, 19), (4, 4)),
    (jnp.float32, (1, 3, 35, 70), (2, 8)),
    (jnp.bfloat16, (1, 4, 18, 150), (8, 2)),
    (jnp.float16, (1, 3, 2, 3), (2, 2)),
    (jnp.float32, (1, 1, 1, 5), (4, 8)),
  ],
)
def test_terms_equal_the_definition(dtype, shape, factors):
  rng = np.random.default_rng(0)
  b, h, w, k = shape
  logits = jnp.asarray(5 * rng.standard_normal(shape), dtype)
  labels = jnp.asarray(rng.integers(-1, k + 1, (b, h * factors[0], w * factors[1])), jnp.int32)
  found, pull = jax.vjp(lambda x: softmax_kernel_gpu.terms(x, labels, interpret=True), logits)
  wanted, pull_wanted = jax.vjp(lambda x: definition_terms(x, labels), logits.astype(jnp.float32))
  cotangents = tuple(jnp.asarray(rng.standard_normal(labels.shape), jnp.float32) for _ in found)
  (gradient,), (wanted_gradient,) = pull(cotangents), pull_wanted(cotangents)
  for y, wanted_y in zip(found, wanted, strict=True):
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, wanted_y, rtol=1e-6, atol=5e-6)
  assert gradient.dtype == dtype
  tolerance = {jnp.float32: 2e-6, jnp.bfloat16: 2**-8, jnp.float16: 2**-11}[dtype]
  limit = max(tolerance / 4, 2e-6) * float(np.abs(wanted_gradient).max())
  np.testing.assert_allclose(np.float32(gradient), wanted_gradient, rtol=tolerance, atol=limit)


def test_logits_that_differ_by_more_than_an_exponential_holds():
  logits = jnp.asarray([[[[300.0, -300.0], [-500.0, -400.0]]]])
  labels = jnp.zeros((1, 2, 4), jnp.int32)
  found = softmax_kernel_gpu.terms(logits, labels, interpret=True)
  for y, wanted in zip(found, definition_terms(logits, labels), strict=True):
    np.testing.assert_allclose(y, wanted, rtol=1e-6)
  gradient = jax.grad(lambda x: softmax_kernel_gpu.terms(x, labels, interpret=True)[0].sum())(logits)
  wanted = jax.grad(lambda x: definition_terms(x, labels)[0].sum())(logits)
  np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_a_class_that_is_masked_by_minus_infinity():
  logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 5, 3)), jnp.float32)
  masked = logits.at[..., 1].set(-jnp.inf)
  labels = jnp.zeros((1, 8, 20), jnp.int32)

  def terms(x):
    return softmax_kernel_gpu.terms(x, labels, interpret=True)

  (found, true_logit), pull = jax.vjp(terms, masked)
  wanted, pull_wanted = jax.vjp(lambda x: definition_terms(x, labels), logits[..., ::2])
  np.testing.assert_allclose(found, wanted[0], atol=1e-6)
  np.testing.assert_allclose(true_logit, wanted[1], atol=1e-6)
  ones = (jnp.ones(labels.shape), jnp.ones(labels.shape))
  (gradient,), (wanted_gradient,) = pull(ones), pull_wanted(ones)
  np.testing.assert_allclose(gradient[..., ::2], wanted_gradient, atol=1e-5)
  assert not gradient[..., 1].any()


def test_kernels_are_lowered_for_cuda():
  """What Triton's dialect has no operation for fails here, as on a GPU; interpreted it would run."""

  def total(x, kernel, logits, labels):
    padding = ((1, 1), (1, 1))
    y = depthwise_kernel.value(x, kernel, padding, (1, 1))
    dx, dkernel = depthwise_kernel.gradients(x, kernel, y, padding, (1, 1))
    return dx, dkernel, jax.grad(lambda z: sum(map(jnp.sum, softmax_kernel_gpu.terms(z, labels))))(logits)

  arrays = (
    jnp.ones((2, 8, 8, 48), jnp.bfloat16),
    jnp.ones((3, 3, 1, 48), jnp.bfloat16),
    jnp.ones((2, 4, 4, 70)),
    jnp.ones((2, 16, 16), jnp.int32),
  )
  try:
    program = jax.jit(total).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
  except RuntimeError as error:
    if "No supported GPU devices" in str(error):
      pytest.skip("this version of JAX lowers kernels only where a GPU is")
    raise
  names = "depthwise", "depthwise_kernel_gradient", "upsampled_softmax", "upsampled_softmax_gradient"
  assert program.count("xla.gpu.triton") == 5 and all(f'name = "{name}"' in program for name in names)


def test_which_shapes_it_takes():
  def takes(logits, size, *, align_corners=False):
    return "cuda" in softmax_kernels_for(logits, (2, *size), align_corners=align_corners)

  assert takes((2, 128, 128, 150), (512, 512)) and takes((2, 16, 16, 19), (32, 128))
  assert not takes((2, 128, 128, 150), (512, 512), align_corners=True)
  assert not takes((2, 128, 128, 150), (513, 512)), "no whole factor"
  assert not takes((2, 32, 32, 21), (96, 96)), "an odd factor"
  assert not takes((2, 32, 32, 21), (512, 512)), "too many phases to unroll"
  assert not takes((2, 32, 32, 1000), (128, 128)), "too many classes"
  assert not takes((2**13, 128, 128, 150), (512, 512)), "more than 32 bits address"


def test_where_gpus_kernels_run(monkeypatch):
  window = depthwise.Window((1, 1), ((1, 1), (1, 1)), (1, 1))

  def chosen(platform):
    conv = depthwise.choose_form(platform, jnp.dtype(jnp.bfloat16), (2, 8, 8, 32), (3, 3), window)
    return conv, choose_form(platform, kernel=True)

  assert chosen("cuda") == ("lax", "strips"), "no GPU is at hand"
  monkeypatch.setattr(definition.jax, "default_backend", lambda: "gpu")
  assert chosen("cuda") == ("kernel", "cuda kernel")
  assert chosen("rocm") == ("lax", "strips") and chosen("tpu") == ("lax", "tpu kernel")
  monkeypatch.setenv("JAXSEG_GPU_KERNELS", "off")
  assert chosen("cuda") == ("lax", "strips")
  monkeypatch.setenv("JAXSEG_GPU_KERNELS", "no")
  with pytest.raises(UserError, match="JAXSEG_GPU_KERNELS is 'no'; expected 'on' or 'off'"):
    chosen("cuda")
