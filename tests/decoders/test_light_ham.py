"""LightHam: exact parameter counts, its alternatives, gradients. Its numbers: tests/pretrained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.decoders.light_ham import LightHam
from tests.encoders.checks import apply, count, dead, init, perturbed, random_sum, traced, unexpected

TINY = dict(num_classes=3, channels=16, ham_channels=32, rank=4, num_groups=8, dropout_rate=0.0)


def _features(dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = {"stage1": (17, 21, 4), "stage2": (9, 11, 5), "stage3": (5, 6, 6), "stage4": (3, 3, 7)}
  return {name: rng.standard_normal((2, *shape)).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("middle", ["nonlocal", "criss_cross", "ema", "none"])
def test_gradients_reach_every_parameter_and_stage(middle):
  model, features = LightHam(**TINY, middle=middle), _features()
  variables = init(model, features)
  rest = {key: value for key, value in variables.items() if key != "params"}

  @jax.jit
  def loss(params, features):
    logits = model.apply({"params": params, **rest}, features, train=True)
    return random_sum(logits), logits

  (by_params, by_features), logits = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    perturbed(variables["params"]), features
  )
  assert logits.shape == (2, 9, 11, 3)
  assert not unexpected(by_params)
  assert dead(by_features) == ["stage1"]  # which it does not read


def test_paper_parameters_of_the_alternatives():
  """Table 5, SegNeXt-B at 150 classes: NMF 27.6 M, non-local 27.6 M, EM 27.4 M."""
  encoder, features = traced("mscan_base")
  sizes = {}
  for middle in ("nmf", "nonlocal", "ema"):
    decoder = jaxseg.create_model("segnext_base", num_classes=150, decoder=dict(middle=middle)).decoder
    init = functools.partial(decoder.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), features)
    sizes[middle] = round((encoder + count(shapes["params"])) / 1e6, 1)
  assert sizes == {"nmf": 27.6, "nonlocal": 27.6, "ema": 27.4}


def _shape(model, features):
  run = lambda key: model.init_with_output(key, features, train=False)[0]  # noqa: E731
  return jax.eval_shape(run, jax.random.key(0)).shape


def test_stages_and_classifier_are_fields():
  features = _features()
  last = LightHam(**TINY | dict(num_classes=None), stages=("stage4",))
  assert _shape(last, features) == (2, 3, 3, 16)
  all_four = LightHam(**TINY, stages=("stage1", "stage2", "stage3", "stage4"))
  assert _shape(all_four, features) == (2, 17, 21, 3)
  with pytest.raises(ValueError, match=r"reads \['stage4'\], but the encoder gives \['stage1'"):
    del features["stage4"]
    init(LightHam(**TINY), features)


def test_bfloat16_keeps_nmf_in_float32_and_repeats():
  features = _features()
  variables = init(LightHam(**TINY), features)
  exact = apply(LightHam(**TINY), variables, features)
  half = LightHam(**TINY, dtype=jnp.bfloat16)
  logits = apply(half, variables, features)
  np.testing.assert_allclose(np.float32(logits), exact, atol=0.05 * np.abs(exact).max() + 0.02)
  np.testing.assert_array_equal(logits, apply(half, variables, features))


def test_dropout_drops_whole_channels():
  features = _features()
  model = LightHam(**TINY | dict(num_classes=None, dropout_rate=0.5))
  variables = init(model, features)
  y = np.asarray(model.apply(variables, features, train=True, rngs={"dropout": jax.random.key(1)}))
  zero = np.all(y == 0, axis=(1, 2))
  assert 0.25 < zero.mean() < 0.75
  kept = np.asarray(LightHam(**TINY | dict(num_classes=None)).apply(variables, features, train=True))
  np.testing.assert_allclose(y, np.where(zero[:, None, None], 0, 2 * kept), rtol=1e-5, atol=1e-6)
