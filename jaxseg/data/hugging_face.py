"""A data set of the Hugging Face hub, or of parquet files: `config.data.name="hf:org/name"` or `"hf:FOLDER"`.

Through the library `datasets`, which the `hf` extra brings.
"""

import importlib.util
from typing import Any

import numpy as np

from jaxseg.data import columns, folder, images, reading
from jaxseg.data.columns import info
from jaxseg.data.source import DataError

__all__ = ["PREFIX", "info", "open_split"]
PREFIX = "hf:"


def open_split(config_data: Any, split: str) -> "HuggingFaceSource":
  """Reads `name`, `classes`, `label_map`, `value_range` and `columns`.

  Raises:
    DataError: no such data set or split, or no image and mask.
    ModuleNotFoundError: without the library; the message has the command to install it.
  """
  if importlib.util.find_spec("datasets") is None:
    raise DataError(
      f"data.name is {config_data.name!r}, which needs the library datasets; install it:"
      " pip install 'jaxseg[hf]'"
    )
  source = HuggingFaceSource(
    config_data.name.removeprefix(PREFIX),
    split,
    tuple(getattr(config_data, "columns", ())),
    folder.mapping(config_data),
    reading.Rule(tuple(map(float, getattr(config_data, "value_range", ())))),
  )
  len(source)  # opened now, so that what is wrong is said now
  return source


class HuggingFaceSource:
  """One split; see `jaxseg.data.source.Source`. Opened again, from the library's cache, in each process."""

  def __init__(self, name: str, split: str, given: tuple[str, ...], table: np.ndarray, rule: reading.Rule):
    self._name, self._split, self._given = name, split, given
    self._table, self._rule = table, rule
    self._opened = None

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_opened": None}

  def __len__(self) -> int:
    return len(self._open()[0])

  def __getitem__(self, index: int) -> dict[str, Any]:
    rows, image, mask = self._open()
    if not 0 <= index < len(rows):
      raise IndexError(f"index {index} is outside the {len(rows)} examples of split {self._split!r}")
    row = rows[index]
    paths = {key: f"{key} of example {index} of {self._name} {self._split}" for key in (image, mask)}
    stored = reading.read_pair(
      _bytes(row[image]), _bytes(row[mask]), image_path=paths[image], mask_path=paths[mask], rule=self._rule
    )
    images.check_pair(*stored, image_path=paths[image], mask_path=paths[mask], table=self._table)
    return {
      "image": images.decode_image(stored[0]),
      "label": images.train_ids(images.decode_mask(stored[1]), self._table.astype(np.uint8)),
      "id": f"{self._split}-{index}",
    }

  def size(self, index: int) -> tuple[int, int]:
    """(h, w), of the mask's header."""
    rows, _, mask = self._open()
    return images.encoded_size(_bytes(rows[index][mask]))

  def _open(self) -> tuple[Any, str, str]:
    if self._opened is None:
      import datasets

      try:
        rows = datasets.load_dataset(self._name, split=self._split)
      # The hub, the network, the files and the library each have classes of their own.
      except Exception as error:
        raise DataError(
          f"hf:{self._name} has no split {self._split!r} that can be read ({images.one_line(error)})"
        ) from None
      pictures = [key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)]
      image, mask = columns.choose_columns(f"hf:{self._name}", pictures, self._given)
      for key in (image, mask):
        rows = rows.cast_column(key, datasets.Image(decode=False))
      self._opened = rows.select_columns([image, mask]), image, mask
    return self._opened


def _bytes(value: dict[str, Any]) -> bytes:
  if value["bytes"] is not None:
    return value["bytes"]
  with open(value["path"], "rb") as handle:
    return handle.read()
