"""Attention by parts of the queries, and by the TPU kernel, interpreted, against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import attention as ops
from jaxseg.ops import attention_kernel

# queries, keys, heads, width, parts: even parts, a prime number of queries, one query each
CASES = [(12, 5, 2, 4, 3), (13, 6, 1, 8, 4), (7, 3, 2, 4, 7)]


def example(n, m, heads, d, dtype):
  rng = np.random.default_rng(0)
  shapes = [(2, n, heads, d), (2, m, heads, d), (2, m, heads, d), (2, n, heads, d)]
  return [jnp.asarray(2 * rng.standard_normal(shape), dtype) for shape in shapes]


def run(function, query, key, value, cotangent):
  out, pull = jax.vjp(function, query, key, value)
  return out, *pull(cotangent.astype(out.dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parts_equal_the_definition(case, dtype):
  *shape, parts = case
  arrays = example(*shape, dtype)
  ours = jax.jit(lambda *a: run(lambda *b: ops.attention_by_parts(*b, parts=parts), *a))(*arrays)
  wide = [x.astype(jnp.float32) for x in arrays]
  theirs = jax.jit(lambda *a: run(ops.attention_reference, *a))(*wide)
  tolerance = 3e-6 if dtype == jnp.float32 else 2e-2
  for a, b in zip(ours, theirs, strict=True):
    assert a.dtype == dtype
    np.testing.assert_allclose(np.float32(a), b, atol=tolerance * float(np.abs(b).max()))


# queries, keys, heads, width: blocks that are filled up on both sides, several heads, one block of each
@pytest.mark.parametrize("case", [(1300, 130, 1, 16), (600, 200, 3, 32), (512, 128, 2, 64)], ids=str)
def test_the_kernel_equals_the_definition(monkeypatch, case):
  n, m, heads, d = case
  assert attention_kernel.fits((2, n, heads, d), m, jnp.bfloat16)
  monkeypatch.setattr(attention_kernel, "_BLOCK_BYTES", 4 * 256 * 512)  # several blocks of the queries
  arrays = example(n, m, heads, d, jnp.bfloat16)
  kernel = functools.partial(attention_kernel.attention, interpret=True)
  ours = jax.jit(lambda *a: run(kernel, *a))(*arrays)
  theirs = jax.jit(lambda *a: run(ops.attention_reference, *a))(*(x.astype(jnp.float32) for x in arrays))
  for mine, wanted in zip(ours, theirs, strict=True):
    assert mine.dtype == jnp.bfloat16
    # Weights and their gradients are rounded before the products, and a result once.
    limit = 2**-8 * float(np.abs(wanted).max())
    np.testing.assert_allclose(np.float32(mine), wanted, rtol=2**-8, atol=limit)


def test_which_attention_the_kernel_takes():
  takes = attention_kernel.fits
  for n, m, heads, d in ((16384, 256, 1, 32), (4096, 256, 2, 32), (1024, 256, 5, 64), (65536, 1024, 1, 64)):
    assert takes((16, n, heads, d), m, jnp.bfloat16)
  assert not takes((16, 1024, 1, 32), 256, jnp.float32)
  assert not takes((16, 1024, 1, 24), 256, jnp.bfloat16), "sublanes that are not filled"
  assert not takes((16, 256, 8, 32), 256, jnp.bfloat16), "few queries"
  assert not takes((16, 1024, 1, 32), 64, jnp.bfloat16), "few keys"
  assert not takes((16, 16384, 1, 32), 4096, jnp.bfloat16), "scores that are larger than a block"


@pytest.mark.parametrize("images", [16, 1])
def test_few_scores_are_no_matter_for_the_kernel(images):
  query, key = (jax.ShapeDtypeStruct((images, n, 1, 32), jnp.bfloat16) for n in (16384, 256))
  text = str(jax.make_jaxpr(ops.attention)(query, key, key))
  assert ("pallas_call" in text) == (images == 16)


def test_the_table(monkeypatch):
  choose = ops.choose_form
  assert choose("tpu", kernel=True, cudnn=False) == "kernel"
  assert choose("cuda", kernel=True, cudnn=True) == "cudnn"
  assert {choose("cpu", kernel=True, cudnn=True), choose("tpu", kernel=False, cudnn=True)} == {"plain"}
  monkeypatch.setenv("JAXSEG_TPU_KERNELS", "off")
  assert choose("tpu", kernel=True, cudnn=False) == "plain"


def test_gradients_of_keys_accumulate_in_float32():
  """Of 2,048 queries in as many parts a sum in bfloat16 would stop growing."""
  query = jnp.zeros((1, 2048, 1, 8), jnp.bfloat16)
  key = value = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
  attend = lambda v: ops.attention_by_parts(query, key, v, parts=2048).astype(jnp.float32).sum()  # noqa: E731
  np.testing.assert_array_equal(np.float32(jax.jit(jax.grad(attend))(value)), 2048)


@pytest.mark.parametrize(("images", "looped"), [(None, True), (1, False)])
def test_many_scores_are_taken_in_parts_counting_the_batch(monkeypatch, images, looped):
  arrays = example(13, 6, 1, 8, jnp.float32)
  monkeypatch.setattr(ops, "MANY_SCORES", 2 * 13 * 6)  # as many as both images have
  monkeypatch.setattr(ops, "PART_SCORES", 2 * 4 * 6)
  text = str(jax.make_jaxpr(lambda *a: ops.attention(*a, images=images))(*arrays[:3]))
  assert ("scan" in text) == looped
  # Four parts of four queries: the 13 need not divide.
  assert ("length=4" in text) == looped


def test_derivative_keeps_no_scores():
  n, m = 4096, 512
  arrays = [jax.ShapeDtypeStruct((1, size, 1, 8), jnp.float32) for size in (n, m, m)]
  attend = lambda q, k, v: ops.attention_by_parts(q, k, v, parts=32).sum()  # noqa: E731
  compiled = jax.jit(jax.grad(attend, argnums=(0, 1, 2))).lower(*arrays).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * m / 2


@pytest.mark.parametrize(
  ("dtype", "n", "d", "expected"),
  [
    (jnp.bfloat16, 64, 32, {"xla", "cudnn"}),
    (jnp.float32, 64, 32, {"xla"}),
    (jnp.bfloat16, 63, 32, {"xla"}),
    (jnp.bfloat16, 64, 12, {"xla"}),
  ],
)
def test_when_cudnn_is_offered(monkeypatch, dtype, n, d, expected):
  """The choice alone: its result takes a GPU."""
  asked = set()

  def record(query, key, value, *, implementation):
    asked.add(implementation)
    return query

  monkeypatch.setattr(jax.nn, "dot_product_attention", record)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  query, key = (jax.ShapeDtypeStruct((1, size, 2, d), dtype) for size in (n, 16))
  jax.eval_shape(ops.attention, query, key, key)
  assert asked == expected
