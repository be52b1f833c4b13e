"""What every dataset is to the rest of the house: a `DatasetInfo` and, per split, a `Source`."""

import concurrent.futures
import dataclasses
import os
import weakref
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from jaxseg.classes import MOST_AT_ONCE, drawn_sets, voc_colors
from jaxseg.errors import UserError
from jaxseg.types import IGNORE_LABEL

_LONGEST_NAME = 200  # of a class; `from_pretrained` refuses longer ones


class DataError(UserError):
  """Something in the user's data or data settings is wrong; the message names the file and the remedy."""


@runtime_checkable
class Examples(Protocol):
  """What batches are made of, Grain's `RandomAccessDataSource`: examples as in `Source`; a list will do."""

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> dict[str, Any]: ...


@runtime_checkable
class Source(Protocol):
  """A split that can be read at any index, from any thread, and, pickled, from any process.

  `source[i]` is {"image": uint8 h w 3 (RGB), "label": uint8 h w (train ids, 255 =
  no label), "id": str}. `size(i)` is (h, w) without decoding the picture.
  """

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> dict[str, Any]: ...
  def size(self, index: int) -> tuple[int, int]: ...


# id of a source → a reference to it and the sizes of all its images; gone when the source is.
_SIZES: dict[int, tuple[weakref.ref, tuple[tuple[int, int], ...]]] = {}


def known_sizes(source: Examples) -> tuple[tuple[int, int], ...]:
  """(h, w) of every example, read once for each source object and kept with it.

  A source without a method `size` is read whole.
  """
  key = id(source)
  if key in _SIZES and _SIZES[key][0]() is source:
    return _SIZES[key][1]
  measure = getattr(source, "size", None) or (lambda index: np.shape(source[index]["image"])[:2])
  with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
    sizes = tuple((int(h), int(w)) for h, w in pool.map(measure, range(len(source))))
  try:
    reference = weakref.ref(source, lambda _: _SIZES.pop(key, None))
  except TypeError:  # a list, which cannot be referred to weakly
    return sizes
  _SIZES[key] = (reference, sizes)
  return sizes


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
  """Facts about a dataset: `classes[i]` is drawn in `palette[i]` (uint8 k 3, RGB).

  With `multi_label` a pixel may have several classes or none, and a label has a bit for each
  (`jaxseg.classes`).
  """

  name: str
  classes: tuple[str, ...]
  palette: UInt8[np.ndarray, "k 3"]
  multi_label: bool = False

  @property
  def drawn(self) -> "DatasetInfo":
    """The same for pictures: a name and a colour for every label that a pixel may have."""
    if not self.multi_label:
      return self
    return DatasetInfo(self.name, *drawn_sets(self.classes, self.palette))

  @property
  def num_classes(self) -> int:
    """How many classes there are, the ignored label not counted."""
    return len(self.classes)


def make_info(name: str, classes: tuple[str, ...], palette: Any, *, multi_label: bool = False) -> DatasetInfo:
  """A checked `DatasetInfo`.

  Raises:
    DataError: no classes, more than 255 (255 marks a pixel without a label; of several at once more than
      15), a name twice, or one that no `config.json` may have.
  """
  if multi_label and len(classes) > MOST_AT_ONCE:
    raise DataError(
      f"{name}: data.classes has {len(classes)} names; with data.multi_label a mask holds at most"
      f" {MOST_AT_ONCE}: train a model for each part of them"
    )
  if not 1 <= len(classes) <= IGNORE_LABEL:
    raise DataError(
      f"{name}: {len(classes)} classes; give 1 to {IGNORE_LABEL} names in data.classes"
      f" ({IGNORE_LABEL} itself marks a pixel without a label)"
    )
  if long := [c for c in classes if len(c) > _LONGEST_NAME]:
    raise DataError(
      f"{name}: class name {long[0][:40]!r}... has {len(long[0])} letters; expected at most {_LONGEST_NAME}"
    )
  twice = sorted({c for c in classes if classes.count(c) > 1})
  if twice:
    raise DataError(f"{name}: class name {twice[0]!r} occurs twice in data.classes; rename one")
  return DatasetInfo(
    name=name, classes=tuple(classes), palette=np.asarray(palette, np.uint8), multi_label=multi_label
  )


def color_map(count: int) -> UInt8[np.ndarray, "{count} 3"]:
  """`count` RGB colours, neighbours far apart: the PASCAL VOC rule without its black first entry."""
  return voc_colors(count + 1)[1:]


def as_rgb(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
  """The first three channels of an image as red, green and blue; one as grey, two without blue."""
  channels = image.shape[-1]
  if channels == 1:
    return np.repeat(image, 3, axis=-1)
  if channels == 2:
    return np.concatenate([image, np.zeros_like(image[..., :1])], axis=-1)
  return image[..., :3]
