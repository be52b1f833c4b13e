"""Top-k: ties, fillers and labels that are no class, by hand; accuracy over batches of any size."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import sharding
from jaxseg.evaluation import ClassificationReport, evaluate_classifier
from jaxseg.metrics import topk_hits
from jaxseg.types import Preprocess


def test_hits_by_hand():
  logits = np.array(
    [
      [0.1, 0.9, 0.5, 0.0],  # first
      [0.1, 0.9, 0.5, 0.0],  # third
      [0.5, 0.5, 0.5, 0.5],  # of equals the second
      [0.0, 1.0, 2.0, 3.0],  # a filler
      [0.0, 1.0, 2.0, 3.0],  # no class
      [np.nan, 1.0, 2.0, 3.0],  # nothing to be found
    ],
    np.float32,
  )
  labels = np.array([1, 0, 1, -1, 4, 0])
  assert topk_hits(logits, labels, top=(1, 2, 3)).tolist() == [4, 1, 2, 3]
  rng = np.random.default_rng(0)
  logits, labels = rng.standard_normal((300, 40)).astype(np.float32), rng.integers(0, 40, 300)
  order = np.argsort(-logits, axis=1)
  hits = [int(np.sum(order[:, :k] == labels[:, None])) for k in (1, 5)]
  assert topk_hits(logits, labels).tolist() == [300, *hits]
  with pytest.raises(ValueError, match=r"top is \(0,\); expected numbers of classes"):
    topk_hits(logits, labels, top=(0,))


@pytest.mark.parametrize("mesh", [False, True])
def test_every_image_counts_once(mesh):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
  labels = rng.integers(0, 3, 7)
  settings = dict(preprocess=Preprocess(std=(1.0, 1.0, 1.0)), top=(1, 2))
  settings["mesh"] = sharding.make_mesh() if mesh else None

  def model(variables, image):
    return jnp.mean(image, (1, 2)) * variables["gain"]

  order = np.argsort(-settings["preprocess"](images).mean((1, 2)), axis=1)
  expected = {k: int(np.sum(order[:, :k] == labels[:, None])) for k in (1, 2)}
  batches = [
    {"image": images[:4], "label": labels[:4]},
    {
      "image": np.concatenate([images[4:], images[:1]]),
      "label": np.concatenate([labels[4:], [-1]]),
    },
  ]
  seen = []
  report = evaluate_classifier(model, {"gain": 2.0}, batches, progress=seen.append, **settings)
  assert report == ClassificationReport(7, expected)
  assert report.scalars() == {"top1": expected[1] / 7, "top2": expected[2] / 7}
  assert seen == [4, 7]
  with pytest.raises(ValueError, match="no batches"):
    evaluate_classifier(model, {}, [], **settings)
  with pytest.raises(ValueError, match="a classifier is create_model"):
    evaluate_classifier(lambda v, x: x, {}, batches, **settings)
