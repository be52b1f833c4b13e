"""What is known about published weight files: licence, source, image statistics, classes.

A record is found by the file's published name or by the checksum in it; a layout's own
default answers for every other file, and the user is told that it was assumed.
"""

import dataclasses
import hashlib
import pathlib

from jaxseg.types import Preprocess

MMSEG_LICENCE = "Apache-2.0 (open-mmlab/mmsegmentation)"


@dataclasses.dataclass(frozen=True)
class Record:
  """One published file, or a layout's default.

  Attributes:
    preprocess: the statistics the weights were trained with.
    dataset: key of `classes.DATASETS`, or None.
    licence: of the weights, as far as their publisher states one.
    source: where they come from.
    checksum: leading hex digits of the file's SHA-256.
  """

  preprocess: Preprocess
  dataset: str | None
  licence: str
  source: str
  checksum: str = ""


# mmsegmentation's configs/_base_/models/cgnet.py: RGB means of Cityscapes, no division.
MMSEG_CGNET_CITYSCAPES = Preprocess((72.39239876, 82.90891754, 73.15835921), (1.0, 1.0, 1.0))
_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5"


def _mmseg(config: str, date_and_checksum: str, preprocess: Preprocess, dataset: str) -> tuple[str, Record]:
  name = f"{config}_{date_and_checksum}.pth"
  source = f"{_MMSEG}/{config.split('_')[0]}/{config}/{name}"
  return name, Record(preprocess, dataset, MMSEG_LICENCE, source, date_and_checksum.rsplit("-", 1)[-1])


# Published file name → record.
FILES = dict(
  [
    _mmseg("cgnet_680x680_60k_cityscapes", "20201101_110253-4c0b2f2d", MMSEG_CGNET_CITYSCAPES, "cityscapes"),
    _mmseg("cgnet_512x1024_60k_cityscapes", "20201101_110254-124ea03b", MMSEG_CGNET_CITYSCAPES, "cityscapes"),
  ]
)


def find(path: pathlib.Path) -> Record | None:
  """The record of a published file, by its name or, where it was renamed, by its checksum."""
  if path.name in FILES:
    return FILES[path.name]
  if not path.is_file():
    return None
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return next((r for r in FILES.values() if r.checksum and digest.startswith(r.checksum)), None)
