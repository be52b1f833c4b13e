"""Images of one and of many channels: read, stored, augmented, and refused in one sentence."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxseg import data
from jaxseg.data import DataError, open_split, packed
from tests.data import miniature

SIZE = (40, 48)


def write(config, *arrays, suffix="npy"):
  root = pathlib.Path(config.manual_dir)
  for i, array in enumerate(arrays):
    place = root / "images" / f"{i}.{suffix}"
    if suffix == "npy":
      np.save(place, array)
    elif suffix == "tif":
      tifffile = pytest.importorskip("tifffile", reason="tifffile reads TIFF of many bands")
      tifffile.imwrite(place, array.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    else:
      Image.fromarray(array).save(place)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "masks" / f"{i}.png")
  (root / "train.txt").write_text("".join(f"{i}\n" for i in range(len(arrays))))


def settings(tmp_path, channels, **more):
  root = tmp_path / "mine"
  for kind in ("images", "masks"):
    (root / kind).mkdir(parents=True)
  places = dict(manual_dir=str(root), data_dir=str(tmp_path / "prepared"))
  return miniature.settings("folder", classes=("a", "b"), channels=channels, **places, **more)


def draw(channels, high=256, dtype=np.uint8):
  return np.random.default_rng(channels).integers(0, high, (*SIZE, channels)).astype(dtype)


@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_many_channels_to_the_value(tmp_path, suffix):
  config, image = settings(tmp_path, 6, value_range=(0.0, 1000.0)), draw(6, 1000, np.uint16)
  write(config, image, suffix=suffix)
  source = open_split(config, "train")
  np.testing.assert_array_equal(source[0]["image"], np.floor(image * 0.255 + 0.5))
  assert source.size(0) == SIZE
  for key, value in dict(rotate=20.0, flip=1.0, flip_vertical=1.0, blur=1.0).items():
    setattr(config, key, value)
  batch = next(data.train_batches(config, batch_size=2, seed=0, start_step=0, fill=tuple(range(6))))
  assert batch["image"].shape == (2, *config.crop_size, 6)
  assert next(data.eval_batches(config, "train", batch_size=2))["image"].shape == (2, *SIZE, 6)
  assert data.check_dataset(config, "train").shown[0]["image"].shape == (*SIZE, 6)


def test_grey_and_what_is_none(tmp_path):
  config, grey = settings(tmp_path, 1), draw(1)
  write(config, grey[..., 0], np.repeat(grey, 3, -1), suffix="png")
  source = open_split(config, "train")
  for i in range(2):
    np.testing.assert_array_equal(source[i]["image"], grey)
  batch = next(data.train_batches(config, batch_size=2, seed=0, start_step=0, fill=(7,)))
  assert batch["image"].shape == (2, *config.crop_size, 1)
  write(config, draw(3), suffix="png")
  with pytest.raises(DataError, match=r"has 3 channels, but data.channels is 1; set it to 3, or convert"):
    open_split(config, "train")


def test_packed_arrays_tell_their_shape_alone():
  array = draw(5)
  stored = packed.pack(array)
  assert packed.is_packed(stored) and packed.shape(stored) == array.shape
  np.testing.assert_array_equal(packed.unpack(stored), array)
