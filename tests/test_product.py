"""Every encoder of at least three stages trains two steps with every decoder that it can feed."""

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


@pytest.mark.parametrize("encoder, decoder", PAIRS)
def test_two_steps(encoder, decoder):
  if not feeds(encoder, decoder):
    # The pair is refused with a sentence that names the missing stage.
    with pytest.raises(ValueError, match="stage"):
      trained(encoder, decoder)
    return
  assert len(stage_shapes(encoder)) >= 3
  losses, moved = trained(encoder, decoder)
  assert np.all(np.isfinite(losses))
  assert moved["encoder"] and moved["decoder"]


def trained(encoder: str, decoder: str):
  """Losses of two steps, and which of the two parts changed."""
  part = smallest(ENCODERS, encoder)
  if hasattr(part, "branches"):
    part = part.clone(branches=(7,))  # of MSCA's strips one: three take three times as long to compile
  model = SegmentationModel(
    encoder=part,
    decoder=catalog.build(DECODERS, decoder, {"num_classes": 3}, kind="decoder"),
  )
  image = np.random.default_rng(0).standard_normal((2, 33, 47, 3)).astype(np.float32)
  batch = {"image": image, "label": np.random.default_rng(1).integers(0, 3, (2, 33, 47))}
  variables = jax.tree.map(jnp.asarray, filled.variables(model, image))
  tx = make_optimizer(dict(name="sgd", learning_rate=1e-2), variables["params"])
  state = create_state(model, variables, tx)
  # Unoptimised code: what is tested is that it trains, and compiling is what takes the time.
  quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  step = make_step(make_loss({}), tx, streams=("dropout", "nmf"))
  step = jax.jit(step, compiler_options=quick)
  losses = []
  for _ in range(2):
    state, scalars = step(state, batch, jax.random.key(3))
    losses.append(float(scalars["loss"]))
  before, after = (jax.tree.map(np.asarray, x) for x in (variables["params"], state.params))
  change = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
  return losses, {part: any(jax.tree.leaves(change[part])) for part in ("encoder", "decoder")}
