"""The TPU kernel of Mix-FFN, interpreted, against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import mix_ffn, mix_ffn_kernel
from jaxseg.ops.definition import for_chip


def example(h=6, w=16, c=5, n=256, k=None):
  rng = np.random.default_rng(0)

  def draw(*shape, scale=1.0):
    return jnp.asarray(rng.standard_normal(shape) * scale, jnp.float32)

  k = k or c
  weights = (
    (draw(c, n, scale=c**-0.5), draw(n)),
    (draw(3, 3, 1, n, scale=1 / 3), draw(n)),
    (draw(n, k, scale=n**-0.5), draw(k)),
  )
  rounded = [(kernel.astype(jnp.bfloat16), bias) for kernel, bias in weights]
  return draw(2, h, w, c).astype(jnp.bfloat16), *rounded


@functools.partial(jax.jit, static_argnums=0)
def run(function, arguments, dy):
  y, pull = jax.vjp(function, *arguments)
  return y, *pull(dy)


# One block an image, of an odd number of rows; blocks that have neighbours on one side, and on both; columns
# in the lanes.
@pytest.mark.parametrize(("h", "w", "most_pixels"), [(5, 16, 4096), (8, 16, 64), (6, 16, 32), (6, 128, 256)])
def test_value_and_gradients_equal_the_definition(h, w, most_pixels, monkeypatch):
  monkeypatch.setattr(mix_ffn_kernel, "_MOST_PIXELS", most_pixels)
  arguments = example(h, w)
  assert mix_ffn_kernel.fits(arguments[0].shape, 256, jnp.bfloat16)
  dy = jnp.asarray(np.random.default_rng(1).standard_normal(arguments[0].shape), jnp.bfloat16)
  wide = jax.tree.map(lambda a: a.astype(jnp.float32), (arguments, dy))
  ours = run(functools.partial(mix_ffn_kernel.mix_ffn, interpret=True), arguments, dy)
  wanted = run(mix_ffn.mix_ffn_reference, *wide)
  for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
    # Products take 16 bits: the hidden map's and its gradient's rounding, and the result's.
    limit = 2**-8 * float(np.abs(theirs).max())
    np.testing.assert_allclose(np.float32(mine), theirs, rtol=2**-7, atol=limit)
  assert ours[0].dtype == ours[1].dtype == ours[2][0].dtype == jnp.bfloat16
  assert ours[2][1].dtype == jnp.float32


def test_which_maps_it_takes():
  takes = functools.partial(mix_ffn_kernel.fits, dtype=jnp.bfloat16)
  for side, c, n in ((128, 32, 128), (128, 64, 512), (64, 128, 1024), (32, 320, 1280), (16, 512, 2048)):
    assert takes((16, side, side, c), n)
  assert not takes((16, 127, 127, 64), 256), "sublanes that are not filled"
  assert not takes((16, 128, 128, 16), 64), "lanes that are not filled"
  assert not takes((16, 127, 128, 64), 256), "rows that do not divide"
  assert not takes((1, 64, 8192, 64), 256), "a row that is longer than a block"
  assert not takes((1, 16, 16, 4096), 16384), "weights that are larger than the vector memory"
  assert not mix_ffn_kernel.fits((16, 128, 128, 32), 128, jnp.float32)
  with for_chip(vector_memory=16 << 20):  # a v4's
    assert takes((16, 128, 128, 64), 512), "smaller blocks"
    assert not takes((16, 32, 32, 320), 1280), "weights and their gradients that fill it"


def test_the_form_is_chosen_by_platform_and_shape():
  assert mix_ffn.choose_form("tpu", kernel=True) == "kernel"
  assert {mix_ffn.choose_form(p, kernel=k) for p, k in (("cpu", True), ("cuda", True), ("tpu", False))} == {
    "operations"
  }
  arguments = example()
  lowered = jax.jit(mix_ffn.mix_ffn).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
  assert "tpu_custom_call" in lowered
  for other in (example(k=7), example(n=200)):
    lowered = jax.jit(mix_ffn.mix_ffn).trace(*other).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in lowered
  dropped = functools.partial(mix_ffn.mix_ffn, drop=lambda y: 2 * y)
  lowered = jax.jit(dropped).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
  assert "tpu_custom_call" not in lowered
