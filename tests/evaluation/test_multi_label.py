"""Pixels of several classes or none, from a folder of masks to scores, label maps and saved weights."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg.classes import as_label, members
from jaxseg.config import load
from jaxseg.errors import UserError
from jaxseg.evaluation.evaluate import evaluate
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.train import loop
from jaxseg.types import Preprocess

CLASSES = ("red", "bright")


def pictures(count=6, size=(48, 64)):
  """Squares that are red, bright, both or neither: every class can be read off the colour."""
  rng = np.random.default_rng(0)
  chosen = rng.random((count, size[0] // 8, size[1] // 8, 2)).repeat(8, 1).repeat(8, 2) < 0.5
  image = np.stack([40 + 200 * chosen[..., 0], 40 + 200 * chosen[..., 1], 0 * chosen[..., 0]], -1)
  return image.astype(np.uint8), chosen


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  root, workdir = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("run")
  for kind in ("images", "masks"):
    (root / kind).mkdir()
  for i, (image, chosen) in enumerate(zip(*pictures(), strict=True)):
    Image.fromarray(image).save(root / "images" / f"{i}.png")
    for number, name in enumerate(CLASSES):
      Image.fromarray(np.uint8(255) * chosen[..., number]).save(root / "masks" / f"{i}_{name}.png")
  (root / "classes.txt").write_text("\n".join(CLASSES))
  (root / "train.txt").write_text("0\n1\n2\n3\n")
  (root / "val.txt").write_text("4\n5\n")
  changes = {
    "data.dir": root, "data.data_dir": root / "prepared", "data.multi_label": "true", "data.workers": 0,
    "data.crop_size": "(32,32)", "data.color": "none", "loss.name": "binary_cross_entropy+dice",
    "total_steps": 40, "batch_size": 2, "optimizer.learning_rate": 0.3, "optimizer.name": "adam",
  }  # fmt: skip
  config = load("folder:colour_only", overrides=[(key, str(value)) for key, value in changes.items()])
  loop.train(config, str(workdir))
  return workdir


def test_a_run_learns_and_its_weights_say_several_classes(run):
  net = jaxseg.from_pretrained(run)
  assert net.model.multi_label and net.classes == CLASSES
  image, chosen = pictures()
  np.testing.assert_array_equal(members(net.predict(image[5]), 2), chosen[5])
  p = net.probabilities(image[5])
  np.testing.assert_array_equal(p >= 0.5, chosen[5])
  # Other roads to the same: views, windows; and a threshold that only the surest reach.
  for how in (dict(flip=True), dict(mode="slide", crop_size=(32, 32), stride=(16, 16), flip=True)):
    np.testing.assert_array_equal(net.predict(image[5], **how), as_label(chosen[5]))
  high = float(p[chosen[5]].min() + p[chosen[5]].max()) / 2  # between two of the few values that there are
  np.testing.assert_array_equal(net.predict(image[5], threshold=high), as_label(p >= high))
  np.testing.assert_array_equal(net.predict_batch([image[5]], threshold=high)[0], as_label(p >= high))
  assert net.overlay(image[5], net.predict(image[5])).shape == image[5].shape
  page = (pathlib.Path(run) / "eval" / "report.html").read_text()
  assert 'id="matrix-data"' not in page and "bright" in page
  with pytest.raises(UserError, match="the CRF gives each pixel one class"):
    net.predict(image[5], crf=jaxseg.crf.Settings())


@pytest.mark.parametrize(
  "rule", [InferenceRule(), InferenceRule(flip=True, threshold=0.3)], ids=["plain", "flip"]
)
def test_scores_are_those_of_each_class_alone(rule):
  rng = np.random.default_rng(1)
  model = jaxseg.create_model("colour_only", num_classes=2, multi_label=True)
  variables = model.init(jax.random.key(1), np.zeros((1, 32, 32, 3), np.float32), train=False)
  image = rng.integers(0, 256, (3, 32, 40, 3)).astype(np.uint8)
  label = as_label(rng.random((3, 32, 40, 2)) < 0.4)
  label[rng.random(label.shape) < 0.2] = 255
  preprocess = Preprocess()
  p = 1 / (1 + np.exp(-np.asarray(model.apply(variables, preprocess(image), train=False)["logits"])))
  assert p.shape == (*label.shape, 2)
  settings = dict(num_classes=2, preprocess=preprocess, rule=rule)
  batch = [{"image": image, "label": label}]
  for details in (False, True):
    report = evaluate(model, variables, batch, details=details, **settings)
    pred, truth, valid = p >= rule.threshold, members(label, 2), (label != 255)[..., None]
    both, either = ((f(pred, truth) & valid).sum((0, 1, 2)) for f in (np.logical_and, np.logical_or))
    np.testing.assert_allclose(report.by_class()["IoU"], both / either)
    assert report.aacc == pytest.approx(((pred == truth) & valid).sum() / (2 * valid.sum()))
    assert report.pixels == valid.sum()
  assert {"boundary_mIoU", "image_mIoU"} < set(report.scalars()) and "red" in report.table(CLASSES)


def test_settings_that_cannot_be():
  for change, sentence in {
    "data.name=voc": "'voc' has one class a pixel",
    "data.cat_max_ratio=0.75": "config.data.cat_max_ratio is 0.75, which is for pixels of one class",
    "loss.class_weights=auto": "config.loss.class_weights is auto",
  }.items():
    with pytest.raises(UserError, match=sentence):
      loop.train(_config(change), "/nonexistent")


def _config(change):
  overrides = [("data.multi_label", "true"), tuple(change.split("="))]
  config = load("cgnet_m3n21_folder", overrides=overrides)
  config.data.classes, config.loss.name = ("a", "b"), "binary_cross_entropy"
  return config
