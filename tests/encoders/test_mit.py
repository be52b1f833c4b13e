"""MiT: shapes, parameters, epsilons, gradients. Its numbers are tested in tests/pretrained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxseg.encoders import mit
from tests.encoders.checks import apply, image, init, random_sum

TINY = dict(
  dims=(8, 16, 20, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 5, 4), ffn_ratios=(2, 2, 2, 2),
  drop_path_rate=0.0,
)  # fmt: skip


def _shapes(model):
  picture = jnp.zeros((1, 64, 64, 3))
  return jax.eval_shape(lambda key: model.init(key, picture, train=False), jax.random.key(0))


@pytest.mark.parametrize("position", ["mix_ffn", "embedding"])
def test_every_stage_halves_and_rounds_up(position):
  model = mit.MiT(**TINY, position=position, position_size=(64, 64))
  init = lambda key: model.init_with_output(key, image(71, 77, batch=2), train=False)[0]  # noqa: E731
  shapes = {key: value.shape for key, value in jax.eval_shape(init, jax.random.key(0)).items()}
  assert shapes == {
    "stage1": (2, 18, 20, 8),
    "stage2": (2, 9, 10, 16),
    "stage3": (2, 5, 5, 20),
    "stage4": (2, 3, 3, 32),
  }


def test_the_position_is_learned():
  model = mit.MiT(**TINY, position="embedding", position_size=(64, 64))
  variables = init(model, image(32, 32))
  run = lambda p: random_sum(model.apply({"params": p}, image(32, 32), train=False)["stage1"])  # noqa: E731
  assert np.any(jax.jit(jax.grad(run))(variables["params"])["stage1"]["position"])


def test_position_embedding_replaces_the_convolution():
  paths = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(
      _shapes(mit.MiT(**TINY, position="embedding"))["params"]
    )
  ]
  assert sum(path.endswith("['position']") for path in paths) == 4
  assert not [path for path in paths if "dwconv" in path]


@pytest.mark.usefixtures("quick_depthwise")
def test_epsilons_change_the_features():
  """Where values are small, an epsilon of 1e-5 and one of 1e-6 are far apart."""
  picture = 1e-3 * image(64, 64)
  variables = init(mit.MiT(**TINY), picture)
  # What the stage's end normalises is small as well.
  variables["params"]["stage1"]["embed_norm"]["scale"] *= 1e-3
  outputs = {
    name: np.asarray(apply(mit.MiT(**TINY, epsilons=name), variables, picture)["stage1"])
    for name in mit.EPSILONS
  }
  for a, b in (("nvlabs", "mmseg"), ("nvlabs", "hf"), ("mmseg", "hf")):
    assert np.abs(outputs[a] - outputs[b]).max() > 1e-3, (a, b)


def test_unknown_epsilons_and_heads_are_refused():
  with pytest.raises((ValueError, TypeCheckError), match=r"(?s)'torch'.*nvlabs.*mmseg.*hf"):
    apply(mit.MiT(epsilons="torch"), {}, image(32, 32))
  with pytest.raises(ValueError, match=r"dims\[0\]=32 is not a multiple of num_heads\[0\]=3"):
    init(mit.MiT(num_heads=(3, 2, 5, 8)), image(32, 32))
