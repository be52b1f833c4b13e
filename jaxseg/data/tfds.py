"""A data set of TensorFlow Datasets by its name: `config.data.name="tfds:oxford_iiit_pet"`.

Read from where TFDS has prepared it as ArrayRecord, without TensorFlow. Nothing is downloaded here.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from jaxseg.data import columns, folder, images, preparing
from jaxseg.data.columns import info
from jaxseg.data.source import DataError

__all__ = ["PREFIX", "info", "open_split"]
PREFIX = "tfds:"


def open_split(config_data: Any, split: str) -> preparing.RecordSource:
  """Reads `name`, `data_dir`, `classes`, `label_map` and `columns`.

  Raises:
    DataError: nothing prepared there, no such split, or no image and mask.
  """
  name = config_data.name.removeprefix(PREFIX)
  where = {"data_dir": os.path.expanduser(config_data.data_dir)} if config_data.data_dir else {}
  remedy = f"prepare it with: tfds build {name} --file_format=array_record" + (
    f" --data_dir={config_data.data_dir}" if config_data.data_dir else ""
  )
  try:
    builder = tfds.builder(name, try_gcs=False, **where)
  # TFDS has a class of its own for each way not to find a data set.
  except Exception as error:
    raise DataError(f"TFDS has no data set {name!r} ({images.one_line(error)}); {remedy}") from None
  if not builder.data_path.exists():
    raise DataError(f"{builder.data_path} does not exist; {remedy}")
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise DataError(
      f"{builder.data_path} is stored as {builder.info.file_format.value}, without random access; {remedy}"
    )
  if split not in builder.info.splits:
    raise DataError(f"{config_data.name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
  features = builder.info.features
  pictures = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
  image, mask = columns.choose_columns(config_data.name, pictures, getattr(config_data, "columns", ()))
  names = [key for key in ("file_name", "image/filename", "id") if key in features]
  where = f"{mask} of {config_data.name}"
  decode = functools.partial(
    _decode, image, mask, names[0] if names else "", where, folder.mapping(config_data)
  )
  return preparing.RecordSource(os.fspath(builder.data_path), split, decode)


def _decode(
  image: str,
  mask: str,
  name: str,
  where: str,
  table: Int[np.ndarray, "65536"],
  record: Mapping[str, Any],
) -> dict[str, Any]:
  ids = images.decode_mask(record[mask])
  # Nobody has looked at the masks before.
  counts = np.bincount(ids.reshape(-1), minlength=len(table))
  unknown = np.flatnonzero(counts[: len(table)] * (table < 0))
  if len(unknown):
    ids = ", ".join(map(str, unknown[:8].tolist()))
    raise DataError(f"{where} has id {ids}, which is no class; map it with data.label_map")
  example = {
    "image": images.decode_image(record[image]),
    "label": images.train_ids(ids, table.astype(np.uint8)),
  }
  return example | ({"id": record[name].decode()} if name else {})
