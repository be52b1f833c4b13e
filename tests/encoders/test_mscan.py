"""MSCAN: shapes, parameter counts, ablations, gradients. Its numbers are tested in tests/pretrained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.encoders import mscan
from jaxseg.layers.drop_path import drop_path_rates
from tests.encoders.checks import count, image, init

TINY = dict(dims=(8, 8, 16, 16), depths=(1, 1, 2, 1), ffn_ratios=(2, 2, 2, 2), drop_path_rate=0.0)


def _shapes(model):
  picture = jnp.zeros((1, 64, 64, 3))
  return jax.eval_shape(lambda key: model.init(key, picture, train=False), jax.random.key(0))


def test_classifier_has_one_linear_layer_on_top():
  shapes = _shapes(jaxseg.create_model("mscan_tiny", num_classes=1000))
  assert jax.tree.map(lambda x: x.shape, shapes["params"]["head"]) == {"kernel": (256, 1000), "bias": (1000,)}
  assert count(shapes["params"]) == 4_160_584


def test_every_stage_halves_and_rounds_up():
  model, picture = mscan.MSCAN(**TINY), image(37, 51, batch=2)
  init = lambda key: model.init_with_output(key, picture, train=False)[0]  # noqa: E731
  shapes = {key: value.shape for key, value in jax.eval_shape(init, jax.random.key(0)).items()}
  assert shapes == {
    "stage1": (2, 10, 13, 8),
    "stage2": (2, 5, 7, 8),
    "stage3": (2, 3, 4, 16),
    "stage4": (2, 2, 2, 16),
  }


@pytest.mark.parametrize(
  ("fields", "absent"),
  [
    (dict(branches=(7,)), ("row11", "row21")),
    (dict(branches=()), ("row7", "column21")),
    (dict(mix=False), ("mix",)),
    (dict(attention="none"), ("local", "mix")),
    (dict(attention="large_kernel"), ("row7",)),
  ],
)
def test_ablations_leave_their_parameters_out(fields, absent):
  paths = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(_shapes(mscan.MSCAN(**TINY, **fields))["params"])
  ]
  assert not [path for path in paths for name in absent if f"['{name}']" in path]
  assert any("proj_out" in path for path in paths)


def test_large_kernel_has_van_size():
  """Table 8 of the paper: 4.2 M with VAN's large kernel, 4.3 M with MSCA, in the whole SegNeXt-T."""
  tiny = jaxseg.create_model("segnext_tiny", num_classes=150)
  models = [tiny.clone(encoder=mscan.MSCAN(attention=attention)) for attention in ("large_kernel", "msca")]
  assert [round(count(_shapes(model)["params"]) / 1e6, 1) for model in models] == [4.2, 4.3]


def test_gate_multiplies_by_the_input():
  x = image(9, 11)
  gated, plain = mscan.MultiScaleConvAttention(branches=(7,)), mscan.MultiScaleConvAttention((7,), gate=False)
  variables = jax.jit(gated.init)(jax.random.key(0), x)
  expected = x * jax.jit(plain.apply)(variables, x)
  np.testing.assert_allclose(jax.jit(gated.apply)(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_even_strip_is_refused():
  with pytest.raises(ValueError, match=r"even lengths \[8\].*use odd ones"):
    mscan.MultiScaleConvAttention(branches=(7, 8)).init(jax.random.key(0), image(9, 9))


def test_drop_path_rates_rise_over_all_stages():
  rates = drop_path_rates(0.3, (1, 2, 1))
  np.testing.assert_allclose([r for stage in rates for r in stage], [0.0, 0.1, 0.2, 0.3])
  assert [len(stage) for stage in rates] == [1, 2, 1]
  assert drop_path_rates(0.3, (1,)) == ((0.0,),)


def test_drop_path_drops_whole_samples():
  """At rate 0.5 a sample's residual branch is either gone or doubled."""
  block = mscan.Block(2, drop_path_rate=0.5, layer_scale=1.0, attention="none")
  x = jax.random.normal(jax.random.key(3), (64, 2, 2, 4))
  variables = init(block, x)
  # Only the feed-forward branch is left.
  variables["params"]["layer_scale1"] = jnp.zeros(4)
  whole = mscan.Block(2, layer_scale=1.0, attention="none")

  @jax.jit
  def run(variables):
    rngs = {"dropout": jax.random.key(4)}
    return [m.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0] for m in (whole, block)]

  kept, dropped = run(variables)
  gone = np.all(np.asarray(dropped == x), axis=(1, 2, 3))
  assert 16 <= gone.sum() <= 48
  np.testing.assert_allclose(
    np.asarray(dropped - x)[~gone], 2 * np.asarray(kept - x)[~gone], rtol=1e-4, atol=1e-5
  )
