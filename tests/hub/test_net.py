"""`Net`: saving, prediction, the corner rule of its logits."""

import dataclasses
import functools
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import crf, hub
from jaxseg.decoders.segformer import AllMLP
from jaxseg.evaluation import make_eval_step, make_predict
from jaxseg.hub.reading import read_image
from jaxseg.models import align_corners_of
from jaxseg.pretrained import tree
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


def test_images_by_path_and_as_pil_images(own, tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  Image.fromarray(picture[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
  np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), picture)
  np.testing.assert_array_equal(read_image(Image.fromarray(picture)), picture)
  assert read_image(Image.fromarray(picture[..., 0])).shape == (6, 9, 3)
  with pytest.raises(ValueError, match=r"nothing.png cannot be read as an image \(FileNotFoundError\)"):
    own.predict(tmp_path / "nothing.png")
  (tmp_path / "text.png").write_text("no image")
  with pytest.raises(ValueError, match="cannot be read as an image"):
    own.predict(str(tmp_path / "text.png"))
  with Image.open(tmp_path / "turned.png") as opened:
    np.testing.assert_array_equal(read_image(opened), picture)
  Image.fromarray(picture[..., 0].astype(np.uint16) * 256).save(tmp_path / "deep.png")
  with pytest.raises(ValueError, match=r"deep.png holds uint16 values from .* with data.value_range"):
    read_image(tmp_path / "deep.png")
  with pytest.raises(ValueError, match="image is a list; expected a uint8 array"):
    own.predict([[0]])


def test_overlay_colours_what_has_a_class(own):
  image = np.full((2, 3, 3), 100, np.uint8)
  label = np.array([[0, 4, 255], [-1, 5, 1]])
  out = own.overlay(image, label)
  np.testing.assert_array_equal(out[0, 1], (100 + own.palette[4].astype(int) + 1) // 2)
  assert (out[0, 2] == 100).all() and (out[1, :2] == 100).all()
  with pytest.raises(ValueError, match=r"label has shape \(3, 2\), expected the image's \(2, 3\)"):
    own.overlay(image, label.T)


def test_push_to_hub_uploads_what_save_pretrained_writes(own, monkeypatch):
  seen = {}

  def upload_folder(*, repo_id, folder_path, revision):
    seen.update(name=repo_id, revision=revision, net=jaxseg.from_pretrained(folder_path))
    return f"https://hub.example/{repo_id}/commit/1"

  double = types.ModuleType("huggingface_hub")
  double.create_repo = lambda name, **k: seen.update(k)
  double.upload_folder = upload_folder
  monkeypatch.setitem(sys.modules, "huggingface_hub", double)
  assert own.push_to_hub("me/mine", private=True, revision="v2").endswith("me/mine/commit/1")
  assert (seen["name"], seen["revision"], seen["private"], seen["exist_ok"]) == ("me/mine", "v2", True, True)
  same(seen["net"].variables, own.variables)
  with pytest.raises(
    ValueError, match="'mine' is not the name of a repository on the hub, expected org/name"
  ):
    own.push_to_hub("mine")

  def refuse(name, **_):
    raise PermissionError("401")

  double.create_repo = refuse
  with pytest.raises(ValueError, match=r"did not take me/mine \(PermissionError\); log in"):
    own.push_to_hub("me/mine")


def test_licence_and_lineage_travel_and_are_escaped(own, tmp_path):
  evil = "x | y\n# <b>"
  net = dataclasses.replace(own, licence="non-commercial", lineage={"source": evil})
  net.save_pretrained(tmp_path / "a")
  back = jaxseg.from_pretrained(tmp_path / "a")
  assert (back.licence, back.lineage) == ("non-commercial", {"source": evil})
  card = (tmp_path / "a" / "README.md").read_text()
  assert "- Licence of the weights: non-commercial." in card and evil not in card
  assert r"- source: x \| y \# \<b\>." in card
  _, report = hub.load_with_report(tmp_path / "a", own.variables, keep=("decoder/classifier/.*",))
  assert report.licence == "non-commercial" and report.facts()["lineage"]["source"] == evil
  assert report.facts()["lineage"]["trained from"] == str(tmp_path / "a")
  assert {tree.below(path) for path in report.new} == {"decoder/classifier/kernel", "decoder/classifier/bias"}
  assert "new: decoder/classifier; licence: non-commercial" in report.text()
