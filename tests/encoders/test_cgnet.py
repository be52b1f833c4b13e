"""CGNet: exact parameter counts, every ablation of the paper, and what the blocks are made of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.encoders.cgnet import CGNet
from jaxseg.ops.definition import traced_for
from tests import filled
from tests.encoders.checks import random_sum


def count(**encoder) -> int:
  model = jaxseg.create_model("cgnet_m3n21", num_classes=19, encoder=encoder)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(lambda i: model.init(jax.random.key(0), i, train=False), image)
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"]))


def test_parameter_counts():
  """The paper's M3N15, and PReLU's slopes: of the stem and the joins, then four or five widths a block."""
  assert count(num_blocks=(3, 15)) == 423_682
  slopes = 3 * 32 + (32 + 3) + (2 * 64 + 3) + 2 * 128
  slopes += (64 + 128) + 2 * (32 + 64) + (128 + 256) + 20 * (64 + 128)
  assert count() - count(activation="relu") == slopes


def test_ablations_change_what_the_paper_says_they_change():
  full = count()
  # f_glo: two linear layers with bias in each of the 24 blocks.
  glo = 3 * (64 * 8 + 8 + 8 * 64 + 64) + 21 * (128 * 8 + 8 + 8 * 128 + 128)
  assert full - count(global_context=False) == glo
  # Input injection: 3 channels more in two joins and in the two strided convolutions after them.
  injected = 3 * (3 + 3) + 9 * 3 * (64 + 128)
  assert full - count(input_injection=False) == injected
  # The surrounding context without dilation has the same weights.
  assert count(surround=False) == full
  assert count(residual="local") == count(residual="none") == full
  # 1×1 after each channel-wise convolution: two of width² a block.
  widths = [64] + 2 * [32] + [128] + 20 * [64]
  assert count(pointwise=True) - full == sum(2 * w * w for w in widths)


@pytest.mark.parametrize("field", ["surround", "residual"])
def test_fields_without_parameters_change_the_output(field):
  image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
  encoder = CGNet(num_blocks=(2, 2))
  variables = jax.jit(lambda: encoder.init(jax.random.key(1), image, train=False))()
  choices = {"surround": (True, False), "residual": ("global", "local", "none")}[field]
  outputs = []
  for choice in choices:
    variant = encoder.clone(**{field: choice})
    outputs.append(jax.jit(partial(variant.apply, train=False))(variables, image)["stage3"])
  for i, a in enumerate(outputs):
    assert all(np.abs(a - b).max() > 1e-4 for b in outputs[:i])


def test_stage_channels():
  image = jax.ShapeDtypeStruct((1, 97, 129, 3), jnp.float32)
  features, _ = jax.eval_shape(lambda i: CGNet().init_with_output(jax.random.key(0), i, train=False), image)
  assert {k: v.shape for k, v in features.items()} == {
    "stage1": (1, 49, 65, 35),
    "stage2": (1, 25, 33, 131),
    "stage3": (1, 13, 17, 256),
  }


def test_injection_averages_with_the_padding_counted():
  from jaxseg.encoders.cgnet import _halve

  halved = _halve(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
  np.testing.assert_allclose(halved, [[4 / 9, 6 / 9], [6 / 9, 1.0]], rtol=1e-6)


def test_the_forms_of_a_tpu_give_the_same():
  """Columns side by side in the stem, the first join and the convolution behind it: maps and gradients."""
  image = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
  encoder = CGNet(num_blocks=(2, 2))
  variables = filled.variables(encoder, np.asarray(image))
  rest = {"batch_stats": variables["batch_stats"]}

  def run(params, image):
    def total(params):
      found, _ = encoder.apply({"params": params, **rest}, image, train=True, mutable=["batch_stats"])
      return random_sum(found), found

    return jax.grad(total, has_aux=True)(params)

  quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  wanted = jax.jit(run, compiler_options=quick)(variables["params"], image)
  with traced_for(platform="tpu"):
    ours = jax.jit(lambda *arguments: run(*arguments), compiler_options=quick)(variables["params"], image)
  for (path, mine), theirs in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
  ):
    limit = 2e-5 * max(np.abs(theirs).max(), 1.0)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))
