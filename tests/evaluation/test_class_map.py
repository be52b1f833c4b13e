"""Weights of other classes: the largest logit of those that stand for a class, then the map."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.evaluation import InferenceRule, evaluate
from jaxseg.evaluation.class_map import make_class_map
from jaxseg.layers.resize import resize_logits
from jaxseg.types import Preprocess

PLAIN = Preprocess(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
PAIRS = ((0, 1), (2, 0), (3, 1))  # class 1 of the model stands for none


def logits(variables, image):
  """Four classes, the colours and their mean, at a quarter of the resolution and much apart."""
  x = image[:, ::4, ::4] * 9.0
  return jnp.concatenate([x, x.mean(-1, keepdims=True)], -1)


@pytest.mark.parametrize("rule", [InferenceRule(), InferenceRule(flip=True)], ids=["plain", "two views"])
def test_counts_are_those_of_mapped_predictions(rule):
  rng = np.random.default_rng(0)
  image = np.repeat(np.repeat(rng.integers(0, 256, (2, 6, 8, 3)), 8, 1), 8, 2).astype(np.uint8)
  labels = rng.integers(0, 2, image.shape[:3]).astype(np.int32)
  labels[:, :5] = 255
  batch = {"image": image, "label": labels, "id": np.array(["a", "b"], object)}
  table = make_class_map(PAIRS, num_model=4, num_data=2)
  assert table == (1, -1, 0, 1)
  settings = {"num_classes": 2, "preprocess": PLAIN, "rule": rule, "class_map": table}
  report = evaluate(logits, {}, [batch], details=True, **settings)
  np.testing.assert_array_equal(report.matrix, evaluate(logits, {}, [batch], **settings).matrix)
  own = evaluate(logits, {}, [batch | {"label": np.zeros_like(labels)}], num_classes=4, preprocess=PLAIN)
  assert own.matrix[0, 1], "the class that stands for none would win somewhere"
  if rule.flip:
    return
  full = np.asarray(resize_logits(logits({}, PLAIN(image)), labels.shape[1:]), np.float64)
  full[..., 1] = -np.inf
  pred = np.asarray(table)[full.argmax(-1)]
  known = labels != 255
  matrix = np.zeros((2, 2), np.int64)
  np.add.at(matrix, (labels[known], pred[known]), 1)
  np.testing.assert_array_equal(report.matrix, matrix)
  probs = np.exp(full - full.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  first = probs[..., [0, 3]].sum(-1)  # of class 1
  loss = -np.log(np.where(labels == 1, first, 1 - first)[known])
  assert report.scalars()["val_loss"] == pytest.approx(loss.mean(), rel=1e-4)
  confidence = np.where(pred == 1, first, 1 - first)[known]
  assert report.details.calibration[:, 1].tolist() == [
    int(np.sum(np.ceil(confidence.astype(np.float32) * np.float32(15)) == i + 1)) for i in range(15)
  ]


@pytest.mark.parametrize(
  ("pairs", "sentence"),
  [
    (((4, 0),), r"config.eval.class_map has \(4, 0\), but the model has the classes 0 to 3"),
    (((0, 2),), r"config.eval.class_map has \(0, 2\), but the data has the classes 0 to 1"),
    (((0, 1), (0, 0)), "gives class 0 of the model to two classes of the data"),
  ],
)
def test_classes_that_there_are_not(pairs, sentence):
  with pytest.raises(UserError, match=sentence):
    make_class_map(pairs, num_model=4, num_data=2)
