"""Multiply-accumulates: by hand on small functions, and the papers' figures on the models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg.layers.conv import Conv, DepthwiseConv
from jaxseg.layers.resize import rescale, resize
from jaxseg.macs import count, count_macs
from jaxseg.ops.definition import defined_by, plain_definitions
from jaxseg.ops.resize import rescale_reference, resize_reference


def layer_macs(layer, shape) -> int:
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  variables = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x), x)
  return count(layer.apply, variables, x)


def test_by_hand():
  # Padded taps are counted: 8·8 outputs of 9·4 inputs each, 6 channels, 2 images.
  assert layer_macs(Conv(6, 3), (2, 8, 8, 4)) == 2 * 8 * 8 * 6 * 9 * 4
  assert layer_macs(Conv(6, 3, groups=2), (2, 8, 8, 4)) == 2 * 8 * 8 * 6 * 9 * 2
  assert layer_macs(Conv(6, 1), (2, 8, 8, 4)) == 2 * 8 * 8 * 6 * 4
  # The fast form holds no convolution at all.
  assert layer_macs(DepthwiseConv((1, 7)), (1, 8, 8, 4)) == 8 * 8 * 4 * 7
  a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 2))
  assert count(lambda a, b: a @ b, a, b) == 3 * 4 * 5 * 2
  # A resize interpolates; nobody counts that, in whichever form it is computed.
  assert count(lambda x: resize(x, (9, 31)), jnp.ones((1, 7, 8, 3))) == 0
  assert count(lambda x: rescale(x, 0.75), jnp.ones((1, 7, 8, 3))) == 0


def test_loops_count_every_step():
  square = jnp.ones((4, 4))
  loop = lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x)  # noqa: E731
  assert count(loop, square) == 7 * 64
  assert count(jax.jit(jax.checkpoint(loop)), square) == 7 * 64
  endless = lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ x, x)  # noqa: E731
  with pytest.raises(ValueError, match="does not tell its number of steps"):
    count(endless, square)


def test_definitions_apply_inside_the_context_only():
  slow = defined_by(lambda x: x + 1)(lambda x: x - 1)
  assert slow(0) == -1
  with plain_definitions():
    assert slow(0) == 1
  assert slow(0) == -1


def test_the_definition_of_a_resize_is_a_resize():
  x = np.random.default_rng(0).standard_normal((2, 13, 17, 3)).astype(np.float32)
  for size in ((97, 129), (26, 34), (5, 6)):
    for align in (False, True):
      np.testing.assert_allclose(
        resize(x, size, align_corners=align), resize_reference(x, size, align_corners=align), atol=2e-6
      )
  for factor in (0.5, 0.75, 1.3):
    np.testing.assert_allclose(rescale(x, factor), rescale_reference(x, factor), atol=2e-6)


# GMACs: convolutions + attention + NMF, of the papers and official repositories.
PUBLISHED = {
  ("cgnet_m3n21", 19, (1024, 2048)): 27.05,
  ("cgnet_m3n21", 19, (360, 640)): 2.97,
  ("cgnet_m3n21", 11, (360, 480)): 2.22,
  ("segnext_tiny", 150, (512, 512)): 6.10 + 0.30,
  ("segnext_small", 150, (512, 512)): 15.34 + 0.30,
  ("segnext_base", 150, (512, 512)): 32.10 + 2.56,
  ("segnext_large", 150, (512, 512)): 64.81 + 4.88,
  ("segnext_tiny", 19, (1024, 2048)): 47.7 + 2.4,
  ("segformer_b0", 150, (512, 512)): 7.35 + 1.04,
  ("segformer_b1", 150, (512, 512)): 13.80 + 2.08,
  ("segformer_b2", 150, (512, 512)): 58.45 + 3.89,
  ("segformer_b3", 150, (512, 512)): 73.06 + 5.91,
  ("segformer_b4", 150, (512, 512)): 87.08 + 8.49,
  ("segformer_b5", 150, (640, 640)): 158.40 + 24.74,
  ("deeplabv1_vgg16", 21, (321, 321)): 50.9,
  ("deeplabv3_resnet101", 21, (513, 513)): 71.1,
  ("deeplabv3plus_xception65", 21, (513, 513)): 54.04,
  ("deeplabv3_mobilenetv2", 21, (513, 513)): 2.74,
}


# Deeper variants of a model that CI counts: the same blocks more often.
DEEPER = {"segnext_small", "segnext_base", "segnext_large", "segformer_b3", "segformer_b4", "segformer_b5"}


@pytest.mark.parametrize(
  "case", [pytest.param(x, marks=pytest.mark.full) if x[0] in DEEPER else x for x in PUBLISHED], ids=str
)
def test_published_models(case):
  name, num_classes, size = case
  macs = count_macs(jaxseg.create_model(name, num_classes=num_classes), size)
  assert macs / 1e9 == pytest.approx(PUBLISHED[case], rel=5e-3)
