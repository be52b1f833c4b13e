"""Changes of a training crop beyond scale, crop and flip, and transforms of one's own."""

import sys

import grain
import numpy as np
import pytest

from jaxseg.data import DataError, train_batches
from jaxseg.data.augment import Extra, load_transform
from tests.data import miniature


def crop():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (24, 32, 3), np.uint8), rng.integers(0, 5, (24, 32), np.uint8)


def apply(extra, seed=0):
  return extra(*crop(), np.random.default_rng(seed), fill=(1, 2, 3))


def test_upside_down():
  image, label = crop()
  new_image, new_label = apply(Extra(flip_vertical=1.0))
  assert (new_image == image[::-1]).all() and (new_label == label[::-1]).all()


def test_rotation_moves_image_and_label_alike():
  label = np.zeros((33, 33), np.uint8)
  label[4:8, 16] = 1
  image = np.repeat(label[..., None] * np.uint8(255), 3, axis=2)

  class Largest(np.random.Generator):
    def uniform(self, low, high):
      return high

  quarter = Largest(np.random.PCG64())
  new_image, new_label = Extra(rotate=90.0)(image, label, quarter, fill=(1, 2, 3))
  assert (new_label == np.rot90(label)).all() and (new_image[..., 0] == np.rot90(image[..., 0])).all()
  new_image, new_label = Extra(rotate=45.0)(image, label, quarter, fill=(1, 2, 3))
  assert new_label[0, 0] == 255 and (new_image[0, 0] == (1, 2, 3)).all()
  assert set(np.unique(new_label)) == {0, 1, 255}, "labels are never mixed"


def test_blur_leaves_labels():
  image, label = crop()
  new_image, new_label = apply(Extra(blur=1.0))
  assert (new_label == label).all() and 0 < np.abs(new_image - image.astype(float)).mean()
  assert abs(new_image.mean() - image.mean()) < 1


class Darker(grain.transforms.Map):
  def map(self, element):
    return {**element, "image": element["image"] // 2}


class Noise(grain.transforms.RandomMap):
  def random_map(self, element, rng):
    return {**element, "image": rng.integers(0, 256, element["image"].shape, np.uint8)}


class LikeAlbumentations:
  """Its interface: a seed, and keywords image and mask."""

  def set_random_seed(self, seed):
    self.rng = np.random.default_rng(seed)

  def __call__(self, *, image, mask):
    return {"image": self.rng.integers(0, 256, image.shape, np.uint8), "mask": mask}


def invert(image, label, rng):
  return 255 - image, label


@pytest.mark.parametrize("transform", [Darker(), Noise(), LikeAlbumentations(), invert])
def test_each_kind_of_transform_depends_on_the_seed_alone(transform):
  first = apply(Extra(transform=transform), seed=1)
  again = apply(Extra(transform=transform), seed=1)
  assert all((a == b).all() for a, b in zip(first, again, strict=True))
  assert (first[0] != crop()[0]).any() and (first[1] == crop()[1]).all()


def test_albumentations_itself():
  library = pytest.importorskip("albumentations", reason="pip install albumentations, or jaxseg[dev]")
  transform = library.Compose(
    [library.HorizontalFlip(p=0.5), library.RandomBrightnessContrast(p=1.0), library.Affine(rotate=(-20, 20))]
  )
  extra = Extra(transform=transform)
  same = [apply(extra, seed=1) for _ in range(2)]
  assert all((a == b).all() for a, b in zip(*same, strict=True)), "the seed alone decides"
  assert (apply(extra, seed=2)[0] != same[0][0]).any()
  image, label = same[0]
  assert image.dtype == label.dtype == np.uint8 and set(np.unique(label)) <= set(range(5))


def test_batches_with_a_transform_by_its_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "my_transforms.py").write_text(
    "def invert(image, label, rng):\n  return 255 - image, label\n"
    "def smaller(image, label, rng):\n  return image[::2], label[::2]\n"
    "number = 3\n"
  )
  config = miniature.settings("synthetic")
  take = lambda: next(train_batches(config, batch_size=2, seed=0, start_step=3))  # noqa: E731
  plain = take()
  config.extra = "my_transforms:invert"
  assert (take()["image"] == 255 - plain["image"]).all()
  config.extra = "my_transforms:smaller"
  with pytest.raises(DataError, match=r"as image uint8 of shape \(16, 48, 3\); expected uint8 of"):
    train_batches(config, batch_size=2, seed=0, start_step=0)
  sys.modules.pop("my_transforms")


@pytest.mark.parametrize(
  ("path", "sentence"),
  [
    ("nothing", "'nothing'; expected module:name"),
    ("no_such_module:x", "there is no module 'no_such_module'"),
    ("json:nope", "has no 'nope'"),
    ("string:digits", "a str; expected a function"),
  ],
)
def test_wrong_paths_are_a_sentence(path, sentence):
  with pytest.raises(DataError, match=sentence):
    load_transform(path)
