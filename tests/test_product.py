"""Every encoder of at least three stages trains two steps with every decoder that it can feed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import catalog
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS
from jaxseg.models import SegmentationModel
from jaxseg.train import create_state, make_loss, make_optimizer, make_step
from tests import filled
from tests.test_catalog import feeds, one_of_each, smallest, stage_shapes

pytestmark = pytest.mark.usefixtures("quick_depthwise")
PAIRS = [
  (encoder, decoder)
  for encoder in one_of_each(ENCODERS)
  if encoder != "pixelwise"  # the quickstart's baseline has one stage
  for decoder in one_of_each(DECODERS)
]


# Each encoder and each decoder once; the other pairs differ in what is tested without compiling.
COMPILED = {
  ("cgnet_m3n21_encoder", "fcn"),
  ("mit_b0", "all_mlp"),
  ("mobilenetv2", "deeplabv3"),
  ("mscan_tiny", "light_ham"),
  ("resnet50", "deeplabv3plus"),
  ("vgg16", "large_fov"),
  ("xception65", "summed_aspp"),
}


def compiled(encoder: str, decoder: str) -> bool:
  """Whether CI compiles the pair: those above, and all of an encoder or decoder that is not in them."""
  known = [{pair[i] for pair in COMPILED} for i in (0, 1)]
  return (encoder, decoder) in COMPILED or encoder not in known[0] or decoder not in known[1]


@pytest.mark.parametrize("encoder, decoder", PAIRS)
def test_a_pair_fits_or_is_refused(encoder, decoder):
  """Logits of the coarse size for every class, abstractly."""
  if not feeds(encoder, decoder):
    # The pair is refused with a sentence that names the missing stage.
    with pytest.raises(ValueError, match="stage"):
      make_model(encoder, decoder)
    return
  assert len(stage_shapes(encoder)) >= 3
  rngs = {name: jax.random.key(i) for i, name in enumerate(("params", "dropout", "nmf"))}
  run = functools.partial(make_model(encoder, decoder).init_with_output, train=True)
  out, _ = jax.eval_shape(run, rngs, jax.ShapeDtypeStruct((2, 33, 47, 3), jnp.float32))
  assert out["logits"].shape[0] == 2 and out["logits"].shape[-1] == 3


@pytest.mark.parametrize(
  "encoder, decoder",
  [pair if compiled(*pair) else pytest.param(*pair, marks=pytest.mark.full) for pair in PAIRS],
)
def test_two_steps(encoder, decoder):
  if not feeds(encoder, decoder):
    pytest.skip("the pair is refused, see test_a_pair_fits_or_is_refused")
  losses, moved = trained(encoder, decoder)
  assert np.all(np.isfinite(losses))
  assert moved["encoder"] and moved["decoder"]


def make_model(encoder: str, decoder: str) -> SegmentationModel:
  """The smallest of the two, for three classes."""
  part = smallest(ENCODERS, encoder)
  if hasattr(part, "branches"):
    part = part.clone(branches=(7,))  # of MSCA's strips one: three take three times as long to compile
  return SegmentationModel(
    encoder=part,
    decoder=catalog.build(DECODERS, decoder, {"num_classes": 3}, kind="decoder"),
  )


def trained(encoder: str, decoder: str):
  """Losses of two steps, and which of the two parts changed."""
  model = make_model(encoder, decoder)
  image = np.random.default_rng(0).standard_normal((2, 33, 47, 3)).astype(np.float32)
  batch = {"image": image, "label": np.random.default_rng(1).integers(0, 3, (2, 33, 47))}
  variables = jax.tree.map(jnp.asarray, filled.variables(model, image))
  tx = make_optimizer(dict(name="sgd", learning_rate=1e-2), variables["params"])
  step = make_step(make_loss({}), tx, streams=("dropout", "nmf"))
  state = create_state(model, variables, tx)
  before, losses = jax.tree.map(np.asarray, state.params), []
  # Unoptimised code: what is tested is that it trains, and compiling is what takes the time.
  quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  step = jax.jit(step, compiler_options=quick)
  for _ in range(2):
    state, scalars = step(state, batch, jax.random.key(3))
    losses.append(float(scalars["loss"]))
  after = jax.tree.map(np.asarray, state.params)
  change = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
  return losses, {part: any(jax.tree.leaves(change[part])) for part in ("encoder", "decoder")}
