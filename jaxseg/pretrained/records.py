"""What is known about published weight files: licence, source, image statistics, classes.

A `Record` says it of one published file (`published.FILES`), or as a layout's default of
every other file in that layout; the user is told what was assumed so.
"""

import dataclasses
from collections.abc import Callable

from jaxseg import classes
from jaxseg.types import Preprocess

MMSEG_LICENCE = "Apache-2.0 (open-mmlab/mmsegmentation)"
MMSEG_SOURCE = "https://github.com/open-mmlab/mmsegmentation"


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


def default_record(
  preprocess: Preprocess, licence: str, source: str, *, segments: bool = True
) -> Callable[[int | None], Record]:
  """A layout's `record`: number of classes → the record, of the data set that this number suggests.

  With `segments=False`, of image classifiers, it suggests none: ImageNet's names are not kept here.
  """
  return lambda count: Record(preprocess, classes.by_count(count) if segments else None, licence, source)


# mmsegmentation's configs/_base_/models/cgnet.py: RGB means of Cityscapes, no division.
MMSEG_CGNET_CITYSCAPES = Preprocess((72.39239876, 82.90891754, 73.15835921), (1.0, 1.0, 1.0))
