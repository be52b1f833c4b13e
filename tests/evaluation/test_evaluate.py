"""Evaluation counts every labelled pixel once, whatever the batches; the report and the picture."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import sharding
from jaxseg.evaluation import Report, evaluate, label_map, make_predict, panel, save_panel
from jaxseg.layers.resize import resize_logits
from jaxseg.types import Preprocess
from tests.train import tiny

PREPROCESS = Preprocess(mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
CLASSES = ("sky", "road", "tree")
PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def examples(count=5, h=20, w=24):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, h, w, 3)).astype(np.uint8)
  labels = rng.integers(0, 3, (count, h, w)).astype(np.int32)
  labels[rng.random(labels.shape) < 0.1] = 255
  return images, labels


def batches(images, labels, size):
  """Batches of `size`; the last is filled up with images that count for nothing."""
  for i in range(0, len(images), size):
    image, label = images[i : i + size], labels[i : i + size]
    missing = size - len(image)
    yield {
      "image": np.concatenate([image, np.zeros((missing, *image.shape[1:]), np.uint8)]),
      "label": np.concatenate([label, np.full((missing, *label.shape[1:]), 255, np.int32)]),
      "id": np.array([f"{i + j}" for j in range(len(image))] + [""] * missing, object),
    }


def expected_matrix(model, variables, images, labels):
  """In NumPy, one image at a time."""
  matrix = np.zeros((3, 3), np.int64)
  for image, label in zip(images, labels, strict=True):
    logits = model.apply(variables, PREPROCESS(image[None]), train=False)["logits"]
    pred = np.argmax(np.asarray(resize_logits(logits, label.shape))[0], -1)
    known = label != 255
    np.add.at(matrix, (label[known], pred[known]), 1)
  return matrix


@pytest.mark.parametrize("mesh", [False, True])
def test_equals_counting_image_by_image(mesh):
  model, (images, labels) = tiny.Tiny(), examples()
  variables = tiny.variables(model)
  expected = expected_matrix(model, variables, images, labels)
  seen = []
  mesh = sharding.make_mesh() if mesh else None
  settings = {"num_classes": 3, "preprocess": PREPROCESS, "mesh": mesh}
  report = evaluate(model, variables, batches(images, labels, 2), progress=seen.append, **settings)
  assert report.matrix.dtype == np.int64
  np.testing.assert_array_equal(report.matrix, expected)
  assert report.matrix.sum() == np.sum(labels != 255)
  assert seen == [2, 4, 5]
  other = evaluate(model, variables, batches(images, labels, 3), **settings)
  np.testing.assert_array_equal(other.matrix, expected)


def test_repeated_evaluations_compile_once():
  traces = []

  class Counted(tiny.Tiny):
    def __call__(self, image, *, train):
      traces.append(1)
      return super().__call__(image, train=train)

  images, labels = examples()
  model = Counted()
  variables = tiny.variables(model)
  traces.clear()
  for _ in range(3):
    evaluate(Counted(), variables, batches(images, labels, 5), num_classes=3, preprocess=PREPROCESS)
  assert len(traces) == 1


def test_a_function_in_place_of_a_model():
  images, labels = examples()
  # Nothing to round: NumPy and XLA must agree on which channel is the largest.
  preprocess = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
  settings = {"num_classes": 3, "preprocess": preprocess}

  def by_label(variables, image):
    return jnp.argmax(image, -1) + variables["offset"]

  def by_logits(variables, image):
    return image

  expected = np.argmax(images, -1)
  matrix = np.zeros((3, 3), np.int64)
  np.add.at(matrix, (labels[labels != 255], expected[labels != 255]), 1)
  for function in (by_label, by_logits):
    report = evaluate(function, {"offset": 0}, batches(images, labels, 2), **settings)
    np.testing.assert_array_equal(report.matrix, matrix)


def test_no_batches():
  with pytest.raises(ValueError, match="there are no batches to evaluate"):
    evaluate(tiny.Tiny(), {}, [], num_classes=3, preprocess=PREPROCESS)


def test_label_map_of_another_size():
  with pytest.raises(ValueError, match="the label map is 4x5, expected the image's 8x5"):
    label_map(np.zeros((1, 4, 5), np.int32), (8, 5))


def test_predict_gives_the_label_map_at_the_images_size():
  model, (images, _) = tiny.Tiny(), examples(h=21, w=27)
  variables = tiny.variables(model)
  pred = make_predict(model, preprocess=PREPROCESS)(variables, images)
  assert (pred.shape, pred.dtype) == ((5, 21, 27), np.int32)
  logits = model.apply(variables, PREPROCESS(images), train=False)["logits"]
  agree = np.asarray(pred) == np.argmax(np.asarray(resize_logits(logits, (21, 27))), -1)
  assert agree.mean() > 0.999


def test_report_by_hand():
  report = Report(np.array([[6, 2, 0], [1, 7, 0], [0, 0, 0]], np.int64))
  assert report.miou == pytest.approx((6 / 9 + 7 / 10) / 2)
  assert report.macc == pytest.approx((6 / 8 + 7 / 8) / 2)
  assert report.aacc == pytest.approx(13 / 16)
  assert report.mdice == pytest.approx((12 / 15 + 14 / 17) / 2)
  lines = report.table(CLASSES).splitlines()
  assert lines[1].split() == ["sky", "0.6667", "0.7500", "0.8571", "0.8000", "50.00%"]
  assert lines[3].split() == ["tree", "-", "-", "-", "-", "0.00%"]
  assert lines[-1] == "mIoU 0.6833  mAcc 0.8125  aAcc 0.8125  mDice 0.8118"
  values = json.loads(report.to_json(CLASSES))
  scores = ("IoU", "Acc", "Precision", "Recall", "F1", "Dice")
  assert values["classes"][2] == {"name": "tree", **dict.fromkeys(scores)}
  assert values["fwIoU"] == pytest.approx((6 / 9 * 8 + 7 / 10 * 8) / 16)
  assert values["pixels"] == 16
  assert values["matrix"] == report.matrix.tolist()
  with pytest.raises(ValueError, match="there are 2 class names for a matrix of 3 classes"):
    report.table(("sky", "road"))


def test_panel_shows_each_pixel_in_its_colour():
  image = np.full((1, 4, 6, 3), 7, np.uint8)
  label = np.array([[[0, 0, 0, 1, 1, 255]] * 4])
  pred = np.full((1, 4, 6), 1)
  picture = panel(image, label, pred, PALETTE, CLASSES)
  colours = {tuple(c) for c in picture.reshape(-1, 3)}
  assert {(7, 7, 7), (255, 0, 0), (0, 255, 0), (0, 0, 0)} <= colours
  assert (0, 0, 255) not in colours, "a class that does not occur is not in the legend"
  # Three pictures of equal size: red is half of the label's, green a third of it and all of the prediction's.
  area = np.sum(np.all(picture == (7, 7, 7), -1))
  swatch = 16 * 16
  assert np.sum(np.all(picture == (255, 0, 0), -1)) == area // 2 + swatch
  assert np.sum(np.all(picture == (0, 255, 0), -1)) == area // 3 + area + swatch


def test_panel_is_written_as_png(tmp_path):
  import cv2

  images, labels = examples(2, 40, 500)
  save_panel(tmp_path / "panel.png", images, labels, labels, PALETTE, CLASSES)
  read = cv2.imread(str(tmp_path / "panel.png"))[..., ::-1]
  np.testing.assert_array_equal(read, panel(images, labels, labels, PALETTE, CLASSES))


@pytest.mark.parametrize(
  ("count", "palette", "sentence"),
  [(1, PALETTE[:2], "the palette has 2 colours for 3 classes"), (0, PALETTE, "there are no images to show")],
)
def test_panel_errors(count, palette, sentence):
  images, labels = examples(count)
  with pytest.raises(ValueError, match=sentence):
    panel(images, labels, labels, palette, CLASSES)
