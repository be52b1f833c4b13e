"""Multi-scale input (DeepLab v2's MSC) and offered auxiliary decoders."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.decoders.aspp import SummedASPP
from jaxseg.encoders.vgg import VGG
from jaxseg.layers.resize import rescale, resize
from jaxseg.models import SegmentationModel
from tests import filled
from tests.encoders.checks import image


@pytest.fixture(scope="module")
def model():
  encoder = VGG(stage_sizes=(1,) * 5, widths=(4, 4, 6, 6, 8))
  return SegmentationModel(encoder=encoder, decoder=SummedASPP(num_classes=3, rates=(1, 2)))


@pytest.fixture(scope="module")
def variables(model):
  return filled.variables(model, image(64, 70))


def test_logits_are_the_maximum(model, variables):
  picture = image(64, 71, batch=2)
  scales = (1.0, 0.75, 0.5)
  apply = lambda model, x, train=False: jax.jit(partial(model.apply, train=train))(variables, x)  # noqa: E731
  own = {s: apply(model, rescale(picture, s))["logits"] for s in scales}
  expected = jnp.maximum(own[1.0], resize(own[0.75], own[1.0].shape[1:3]))
  expected = jnp.maximum(expected, resize(own[0.5], own[1.0].shape[1:3]))
  fused = apply(model.clone(scales=scales), picture)
  assert set(fused) == {"logits"}
  np.testing.assert_allclose(fused["logits"], expected, atol=1e-6)
  # The order of the scales does not matter.
  again = apply(model.clone(scales=(0.5, 1.0, 0.75)), picture)
  np.testing.assert_array_equal(again["logits"], fused["logits"])

  trained = apply(model.clone(scales=scales), picture, train=True)
  assert set(trained) == {"logits", "scale100_logits", "scale075_logits", "scale050_logits"}
  for scale, logits in own.items():
    np.testing.assert_allclose(trained[f"scale{round(100 * scale):03d}_logits"], logits, atol=1e-6)


def test_without_the_full_scale(model, variables):
  """Only what is listed takes part, and the largest sets the resolution."""
  picture = image(64, 64)
  out = jax.eval_shape(partial(model.clone(scales=(0.5, 0.75)).apply, train=True), variables, picture)
  assert out["logits"].shape[1:3] == (6, 6) and "scale100_logits" not in out


@pytest.mark.parametrize("scales", [(), (1.0, 1.0), (1.0, 0.0), (1.0, -0.5)])
def test_bad_scales(model, variables, scales):
  with pytest.raises(ValueError, match="expected different positive factors such as"):
    model.clone(scales=scales).apply(variables, image(64, 64), train=False)


def test_an_offered_auxiliary_decoder_is_off_until_asked_for():
  plain = jaxseg.create_model("deeplabv3_resnet50", num_classes=5)
  assert plain.aux_decoder is None
  asked = jaxseg.create_model("deeplabv3_resnet50", num_classes=5, aux_decoder=dict(channels=64))
  aux = asked.aux_decoder
  assert (aux.num_classes, aux.stage, aux.num_convs, aux.channels) == (5, "stage3", 1, 64)
  with pytest.raises(ValueError, match="deeplabv1_vgg16 has no auxiliary decoder"):
    jaxseg.create_model("deeplabv1_vgg16", num_classes=5, aux_decoder=dict(channels=64))


def test_auxiliary_logits():
  encoder = VGG(stage_sizes=(1,) * 5, widths=(4, 4, 6, 6, 8))
  decoder = SummedASPP(num_classes=3, rates=(1,))
  model = SegmentationModel(encoder=encoder, decoder=decoder, aux_decoder=decoder.clone(stage="stage3"))
  run = partial(model.init_with_output, train=False)
  out, variables = jax.eval_shape(run, jax.random.key(0), image(33, 33))
  assert set(variables["params"]) == {"encoder", "decoder", "aux_decoder"}
  assert set(out) == {"logits", "aux_logits"} and out["aux_logits"].dtype == jnp.float32
