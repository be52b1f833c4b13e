"""`Net.probabilities` and `Net.predict_batch`: one image's labels, whatever batch it was in."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.crf import Settings
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.hub import Net
from jaxseg.hub.segmenter import Segmenter, nearby_sizes
from jaxseg.types import Preprocess
from tests.hub.small import init

SIZES = [(48, 64), (50, 71), (48, 64), (64, 48), (48, 64)]


@pytest.fixture(scope="module")
def own():
  """Five classes by colour alone, which compile in no time."""
  model, variables = init(name="colour_only", encoder=None)
  palette = np.arange(15, dtype=np.uint8).reshape(5, 3)
  return Net(model, variables, Preprocess(), tuple("abcde"), palette, "colour_only", dict(num_classes=5))


@pytest.fixture(scope="module")
def pictures():
  rng = np.random.default_rng(1)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.mark.parametrize("rule", [{}, {"flip": True}], ids=str)
def test_probabilities_belong_to_the_labels(own, picture, rule):
  probabilities = own.probabilities(picture, **rule)
  assert probabilities.shape == (50, 71, 5) and probabilities.dtype == np.float32
  np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
  assert np.mean(probabilities.argmax(-1) == own.predict(picture, **rule)) >= 0.999


def test_probabilities_after_a_crf(own, picture):
  crf = Settings(sxy=9.0, srgb=20.0, steps=2, method="exact")
  refined = own.probabilities(picture, crf=crf)
  np.testing.assert_allclose(refined.sum(-1), 1, atol=1e-5)
  np.testing.assert_array_equal(refined.argmax(-1), own.predict(picture, crf=crf))
  assert np.any(refined.argmax(-1) != own.predict(picture))


def test_a_batch_of_many_sizes_keeps_the_order(own, pictures, tmp_path):
  Image.fromarray(pictures[1]).save(tmp_path / "1.png")
  given = [pictures[0], tmp_path / "1.png", Image.fromarray(pictures[2]), *pictures[3:]]
  found = own.predict_batch(given, batch_size=2)
  assert [label.shape for label in found] == SIZES and all(label.dtype == np.int32 for label in found)
  for label, image in zip(found, pictures, strict=True):
    assert np.mean(label == own.predict(image)) >= 0.999
  assert own.predict_batch([]) == []


def test_batches_of_one_input_size_have_as_many_rows(own):
  segmenter = Segmenter(own.model, own.variables, preprocess=own.preprocess, rule=InferenceRule())
  batches = list(segmenter.batches([(48, 64)] * 9 + [(64, 64)], batch_size=8))
  assert [(len(numbers), rows) for numbers, rows in batches] == [(5, 5), (4, 5), (1, 1)]
  many = [(48, 64 + i) for i in range(20)]
  assert len({segmenter.key(size) for size in many}) == 20
  assert len({segmenter.for_sizes(many).key(size) for size in many}) <= 8


def test_sizes_that_stand_for_others_are_near():
  rng = np.random.default_rng(0)
  many = [tuple(size) for size in rng.integers(300, 900, (60, 2)).tolist()]
  near = nearby_sizes(many)
  assert len(set(near.values())) <= 8 and set(near) == set(many)
  factors = np.array([np.array(near[size]) / size for size in many])
  assert factors.max() < 1.5 and factors.min() > 1 / 1.5 and abs(np.log(factors).mean()) < 0.03
  assert nearby_sizes(many[:8]) == {size: size for size in many[:8]}


def test_what_is_wrong_with_an_image_of_a_batch(own, pictures):
  with pytest.raises(ValueError, match=r"image 1: image is float32, expected uint8"):
    own.predict_batch([pictures[0], pictures[1].astype(np.float32)])
  with pytest.raises(ValueError, match="batch_size is 0; expected a whole number"):
    own.predict_batch(pictures, batch_size=0)
