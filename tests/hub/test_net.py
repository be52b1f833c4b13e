"""`Net`: saving, prediction, the corner rule of its logits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg import crf
from jaxseg.decoders.segformer import AllMLP
from jaxseg.evaluation import make_eval_step, make_predict
from jaxseg.models import align_corners_of
from jaxseg.train import make_loss
from jaxseg.types import Preprocess
from tests.hub.small import same


def test_save_and_load_again(own, picture, tmp_path):
  own.save_pretrained(tmp_path / "mine")
  for source in (tmp_path / "mine", tmp_path / "mine" / "model.safetensors"):
    net = jaxseg.from_pretrained(source)
    same(net.variables, own.variables)
    assert net.model == own.model
    assert net.preprocess == own.preprocess
    assert net.classes == own.classes
    assert net.palette.tolist() == own.palette.tolist()
    assert not net.assumed
  np.testing.assert_array_equal(net.predict(picture), own.predict(picture))
  card = (tmp_path / "mine" / "README.md").read_text()
  assert "from_pretrained" in card and "| 4 | e | #0c0d0e |" in card
  moved = (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "alone.safetensors")
  assert jaxseg.from_pretrained(moved).model == own.model


def test_predict_is_the_argmax_of_the_resized_logits(own, picture):
  image = (picture.astype(np.float32) - (1, 2, 3)) / (4, 5, 6)
  apply = jax.jit(functools.partial(own.model.apply, train=False))
  out = apply(own.variables, jnp.float32(image)[None, ..., ::-1])
  expected = jnp.argmax(jaxseg.resize_logits(out["logits"], (50, 71)), -1)[0]
  labels = own.predict(picture)
  assert labels.dtype == np.int32 and isinstance(labels, np.ndarray)
  assert len(np.unique(labels)) > 1
  assert np.mean(labels == expected) >= 0.999
  np.testing.assert_array_equal(own.predict(jnp.asarray(picture)), labels)


def test_predict_with_a_crf_refines_the_probabilities(own, picture):
  kernels = [(3, None, 3.0), (20, 10, 4.0)]
  labels = own.predict(picture, crf=dict(kernels=kernels, steps=2, method="exact"))
  apply = jax.jit(functools.partial(own.model.apply, train=False))
  logits = apply(own.variables, own.preprocess(picture)[None])["logits"]
  unary = -jax.nn.log_softmax(jaxseg.resize_logits(logits, (50, 71))[0])
  expected = crf.mean_field(unary, picture, kernels, steps=2).argmax(-1)
  assert np.mean(labels == expected) >= 0.999
  assert np.any(labels != own.predict(picture))
  with pytest.raises(
    ValueError, match=r"crf has the keys \['kernel'\], expected kernels and perhaps steps, method"
  ):
    own.predict(picture, crf=dict(kernel=kernels))


class _Corners(nn.Module):
  """Every eighth pixel as logits, brought back by the decoder's rule."""

  decoder: nn.Module

  def __call__(self, image, *, train):
    return {"logits": image[:, ::8, ::8]}


@pytest.mark.parametrize("corners", [True, False])
def test_the_corner_rule_of_the_logits_is_the_decoders(picture, corners):
  model = _Corners(AllMLP(align_corners=corners))
  logits = picture[None, ::8, ::8].astype(np.float32)
  expected = {
    c: np.argmax(jaxseg.resize_logits(logits, (50, 71), align_corners=c), -1) for c in (True, False)
  }
  assert np.any(expected[True] != expected[False])
  plain = Preprocess((0.0,) * 3, (1.0,) * 3)
  np.testing.assert_array_equal(make_predict(model, preprocess=plain)({}, picture[None]), expected[corners])
  counts = make_eval_step(model, num_classes=3, preprocess=plain)
  batch = {"image": picture[None], "label": expected[corners].astype(np.int32)}
  assert np.trace(counts({}, batch)) == 50 * 71
  # The same in training, where a config may say otherwise.
  label = batch["label"]
  for given in (None, True, False):
    loss = make_loss({"align_corners": given}, align_corners=align_corners_of(model))
    rule = corners if given is None else given
    right = make_loss({"align_corners": rule})({"logits": logits}, label)[0]
    np.testing.assert_array_equal(loss({"logits": logits}, label)[0], right)


@pytest.mark.parametrize(
  ("image", "sentence"),
  [
    (np.zeros((40, 40, 3), np.float32), "image is float32, expected uint8"),
    (np.zeros((40, 40), np.uint8), "a grey picture"),
    (np.zeros((40, 40, 1), np.uint8), "a grey picture"),
    (np.zeros((1, 40, 40, 3), np.uint8), "a batch"),
    (np.zeros((40, 40, 4), np.uint8), "expected RGB"),
    (np.zeros((20, 40, 3), np.uint8), "at least 32 pixels"),
  ],
)
def test_pictures_that_predict_refuses(own, image, sentence):
  with pytest.raises(ValueError, match=sentence):
    own.predict(image)


def test_unknown_mode(own, picture):
  with pytest.raises(ValueError, match="mode is 'hole'; did you mean 'whole'"):
    own.predict(picture, mode="hole")
