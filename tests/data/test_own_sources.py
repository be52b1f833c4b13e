"""Data sets of other libraries by their names, and sources of your own."""

import importlib.util
import io
import itertools
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxseg.data import DataError, batches, dataset_info, eval_batches, make_rule, open_split, train_batches
from jaxseg.data.columns import choose_columns
from tests.data import miniature, oddities


def _png(array) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, "PNG")
  return buffer.getvalue()


class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """As TFDS's oxford_iiit_pet: ids 1 to 3, and entries that nobody here asks for."""

  name = "pets"
  VERSION = tfds.core.Version("4.0.0")
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
          "label": tfds.features.ClassLabel(num_classes=37),
          "file_name": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, manager):
    return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

  def _generate_examples(self, count):
    for i in range(count):
      yield (
        i,
        {
          "image": _png(oddities.IMAGE + np.uint8(i)),
          "segmentation_mask": _png(np.minimum(oddities.LABEL, 2) + np.uint8(1)),
          "label": 3,
          "file_name": f"pet{i}.jpg",
        },
      )


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  settings = tfds.download.DownloadConfig(
    try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
  )
  Pets(data_dir=root, file_format="array_record").download_and_prepare(download_config=settings)
  return str(root)


def _pets(root, **changes):
  settings = dict(
    data_dir=root, classes=("pet", "ground", "border"), label_map=((1, 0), (2, 1), (3, 2)), eval_split="test"
  )
  return miniature.settings(**(dict(name="tfds:pets") | settings | changes))


def test_tfds_by_name(pets):
  config = _pets(pets)
  source = open_split(config, "train")
  assert len(source) == 5 and source[3]["id"] == "pet3.jpg" and source.size(3) == oddities.SIZE
  np.testing.assert_array_equal(source[3]["image"], oddities.IMAGE + np.uint8(3))
  np.testing.assert_array_equal(source[3]["label"], np.minimum(oddities.LABEL, 2))
  assert pickle.loads(pickle.dumps(source))[4]["id"] == "pet4.jpg"
  assert dataset_info(config).classes == ("pet", "ground", "border")
  batch = next(train_batches(config, batch_size=3, seed=0, start_step=0))
  assert batch["image"].shape == (3, 32, 48, 3) and batch["label"].dtype == np.uint8
  assert len(open_split(config, "train+test")) == 7
  (batch,) = eval_batches(config, "test", batch_size=2)
  assert list(batch["id"]) == ["pet0.jpg", "pet1.jpg"]


@pytest.mark.parametrize(
  ("changes", "split", "sentence"),
  [
    ({}, "val", "tfds:pets has no split 'val'; it has train, test"),
    ({"classes": ()}, "train", "data.classes is empty; give the names|0 classes"),
    (
      {"columns": ("image", "label")},
      "train",
      r"data.columns is \('image', 'label'\); expected \(image, mask\) among",
    ),
    ({"label_map": ((1, 0), (2, 1))}, "train", "segmentation_mask of tfds:pets has id 3, which is no class"),
    ({"name": "tfds:dogs"}, "train", "TFDS has no data set 'dogs' .*; prepare it with: tfds build dogs"),
  ],
)
def test_tfds_sentences(pets, changes, split, sentence):
  with pytest.raises(DataError, match=sentence):
    open_split(_pets(pets, **changes), split)[0]


def test_columns():
  assert choose_columns("x", ["mask", "image"]) == ("image", "mask")
  assert choose_columns("x", ["a", "b"], ("b", "a")) == ("b", "a")
  with pytest.raises(DataError, match=r"x has the pictures a, b; say which two are meant with data.columns"):
    choose_columns("x", ["a", "b"])


def test_without_the_library(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(DataError, match=r"needs the library datasets; install it: pip install 'jaxseg\[hf\]'"):
    open_split(miniature.settings("hf:org/name", classes=("a", "b")), "train")


def test_hugging_face_parquet(tmp_path):
  datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")
  rows = [
    {
      "image": Image.fromarray(oddities.IMAGE + np.uint8(i)),
      "annotation": Image.fromarray(oddities.LABEL),
      "n": i,
    }
    for i in range(3)
  ]
  features = datasets.Features(
    {"image": datasets.Image(), "annotation": datasets.Image(), "n": datasets.Value("int32")}
  )
  (tmp_path / "data").mkdir()
  datasets.Dataset.from_list(rows, features=features).to_parquet(
    tmp_path / "data/train-00000-of-00001.parquet"
  )
  config = miniature.settings(f"hf:{tmp_path}", classes=("ground", "tree", "car"))
  source = pickle.loads(pickle.dumps(open_split(config, "train")))
  assert len(source) == 3 and source.size(2) == oddities.SIZE
  np.testing.assert_array_equal(source[2]["image"], oddities.IMAGE + np.uint8(2))
  np.testing.assert_array_equal(source[2]["label"], oddities.LABEL)
  with pytest.raises(DataError, match="has no split 'val' that can be read"):
    open_split(config, "val")


def test_a_source_of_your_own():
  examples = [{"image": oddities.IMAGE, "label": oddities.LABEL, "id": f"e{i}"} for i in range(4)]
  rule = make_rule(crop_size=(16, 16), scale_range=(0.5, 2.0), scale_step=0.0, flip=0.5)
  made = list(itertools.islice(batches(examples, rule, batch_size=2, workers=0), 4))
  assert sorted(name for batch in made[:2] for name in batch["id"]) == ["e0", "e1", "e2", "e3"]
  again = next(batches(examples, rule, batch_size=2, start_step=3, workers=0))
  np.testing.assert_array_equal(again["image"], made[3]["image"])


def test_an_unknown_name():
  with pytest.raises(DataError, match=r"no dataset called 'tfsd:pets'.*, or tfds:NAME, or hf:ORG/NAME"):
    open_split(miniature.settings("tfsd:pets"), "train")
