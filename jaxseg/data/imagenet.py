"""ImageNet-1K (ILSVRC 2012) for pretraining encoders: a picture and one class, no mask.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. Class i
is the i-th synset folder of train/ in sorted order, which is how published weights number them.
A source gives {"image": uint8 h w 3, "label": int, "id": str}.
"""

import functools
import io
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from etils import epath

from jaxseg.data import files, images, pairs, preparing
from jaxseg.data.source import DataError, DatasetInfo, color_map

NUM_CLASSES = 1000
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LAYOUT = """  train/SYNSET/NAME.JPEG   1,281,167 pictures in 1,000 folders n01440764, ...
  val/SYNSET/NAME.JPEG     50,000 pictures; or, as in the archive,
  val/ILSVRC2012_val_00000001.JPEG ... with
  ILSVRC2012_devkit_t12/data/meta.mat and ILSVRC2012_validation_ground_truth.txt (or devkit/)"""


class Picture(NamedTuple):
  """One item."""

  id: str
  path: str
  label: int

  @property
  def paths(self) -> tuple[str, ...]:
    """The file."""
    return (self.path,)


class ImageNet(preparing.FileBuilder, skip_registration=True):
  """TFDS builder; see the module's header."""

  name = "imagenet"
  VERSION = tfds.core.Version("1.0.0")
  unit = "pictures"

  def features(self) -> tfds.features.FeaturesDict:
    """A picture, its class and a name."""
    return tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.Scalar(np.int64),
        "id": tfds.features.Text(),
      }
    )


def info(config_data: Any) -> DatasetInfo:
  """The synsets below `manual_dir` in their order; without `manual_dir` "0" to "999"."""
  root = pairs.inside(config_data.manual_dir)
  classes = [str(i) for i in range(NUM_CLASSES)] if root is None else _synsets(root)
  return DatasetInfo(name="imagenet", classes=tuple(classes), palette=color_map(len(classes)))


def original(config_data: Any) -> preparing.Original:
  """What lies below `manual_dir`; files that are changed in place go unnoticed, they are too many to ask."""
  root = pairs.inside(config_data.manual_dir)
  return preparing.Original(
    builder=ImageNet,
    root="" if root is None else os.fspath(root),
    find=functools.partial(_find, root),
    load=load,
    decode=decode,
    watch=() if root is None else tuple(os.fspath(root / path) for path in ("train", "val", *_devkits())),
    edits=False,
    absent={"test": "the classes of the test pictures are not published; use val"},
  )


def load(picture: Picture) -> list[dict[str, Any]]:
  """The record of a picture, after its last byte was decoded.

  Raises:
    DataError: truncated, or not a picture.
  """
  data = files.read_bytes(picture.path)
  images.check_image(data, path=picture.path)
  return [{"image": data, "label": picture.label, "id": picture.id}]


def decode(record: Mapping[str, Any]) -> dict[str, Any]:
  """The example of a record."""
  image = images.decode_image(record["image"])
  return {"image": image, "label": int(record["label"]), "id": record["id"].decode()}


def _devkits() -> tuple[str, ...]:
  return (DEVKIT, "devkit/data", "devkit")


def _synsets(root: epath.Path) -> list[str]:
  pairs.require(root, ("train",), name="imagenet", layout=LAYOUT)
  return files.folders(root / "train")


def _find(root: epath.Path) -> dict[str, list[Picture]]:
  pairs.require(root, ("train", "val"), name="imagenet", layout=LAYOUT)
  synsets = _synsets(root)
  if not synsets:
    raise DataError(f"imagenet: {root / 'train'} has no folder; expected one for each synset, as\n{LAYOUT}")
  for name in synsets:
    # Any other folder would become a class, and shift those after it.
    if not files.names(os.fspath(root / "train" / name)):
      raise DataError(f"imagenet: {root / 'train' / name} is empty; put its pictures there, or remove it")
  inner = files.folders(root / "val")
  unknown = sorted(set(inner) - set(synsets))
  if unknown:
    raise DataError(
      f"imagenet: {root / 'val' / unknown[0]} is a class that train/ does not have;"
      f" add its folder there, or remove it here"
    )
  val = _in_folders(root / "val", synsets) if inner else _by_list(root, synsets)
  return {"train": _in_folders(root / "train", synsets), "val": val}


def _in_folders(folder: epath.Path, synsets: list[str]) -> list[Picture]:
  path, found = os.fspath(folder), []
  present = set(files.folders(folder))
  for label, synset in enumerate(synsets):
    for name in _pictures(f"{path}/{synset}") if synset in present else []:
      found.append(Picture(f"{synset}/{os.path.splitext(name)[0]}", f"{path}/{synset}/{name}", label))
  return found


def _pictures(folder: str) -> list[str]:
  return [name for name in files.names(folder) if name.lower().endswith(IMAGE_SUFFIXES)]


def _by_list(root: epath.Path, synsets: list[str]) -> list[Picture]:
  """The flat val/, whose i-th picture has the i-th number of the devkit's list."""
  names = _pictures(os.fspath(root / "val"))
  devkit = next((path for path in _devkits() if (root / path).exists()), DEVKIT)
  if names:
    pairs.require(root, (f"{devkit}/{TRUTH}", f"{devkit}/meta.mat"), name="imagenet", layout=LAYOUT)
  else:
    return []
  try:
    numbers = [int(number) for number in pairs.read_names(root / devkit / TRUTH)]
  except ValueError as error:
    raise DataError(
      f"imagenet: {root / devkit / TRUTH} is truncated or another file ({error}); expected a number a line"
    ) from None
  if len(numbers) != len(names):
    raise DataError(
      f"imagenet: {root / 'val'} has {len(names)} pictures, but {root / devkit / TRUTH} {len(numbers)} lines;"
      " they must be equal"
    )
  label_of = _labels_of_numbers(root / devkit / "meta.mat", synsets)
  unknown = sorted(set(numbers) - set(label_of))
  if unknown:
    raise DataError(
      f"imagenet: {root / devkit / TRUTH} has the number {unknown[0]}, which is no class of train/"
    )
  return [
    Picture(os.path.splitext(name)[0], os.fspath(root / "val" / name), label_of[number])
    for name, number in zip(names, numbers, strict=True)
  ]


def _labels_of_numbers(path: epath.Path, synsets: list[str]) -> dict[int, int]:
  """ILSVRC2012_ID, which is not in the order of the synsets, → class."""
  try:
    table = scipy.io.loadmat(io.BytesIO(path.read_bytes()), squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(table)}
  except Exception as error:
    raise DataError(
      f"imagenet: {path} is truncated or another file ({error}); unpack the devkit again"
    ) from error
  place = {synset: label for label, synset in enumerate(synsets)}
  return {number: place[wnid] for number, wnid in wnids.items() if wnid in place}
