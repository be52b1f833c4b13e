"""Data: bytes on disk → batches. Datasets by name, and the two iterators over them.

A dataset is one module with `info(config_data)` and `open_split(config_data, split)`;
its line in `DATASETS` is all it takes to be known everywhere. Modules are imported on
first use: `import jaxseg.data` loads neither TFDS, Grain nor OpenCV.
"""

from typing import Any

from jaxseg import lazy
from jaxseg.catalog import suggestion
from jaxseg.data.joined import JoinedSource
from jaxseg.data.source import DataError, DatasetInfo, Source

DATASETS = {
  "camvid": "jaxseg.data.camvid",
  "folder": "jaxseg.data.folder",
  "synthetic": "jaxseg.data.synthetic",
}

# Public name → the module that defines it (PEP 562).
_LAZY = {
  "class_weights": "jaxseg.data.statistics",
  "distort": "jaxseg.data.color",
  "eval_batches": "jaxseg.data.pipeline",
  "label_histogram": "jaxseg.data.statistics",
  "train_batches": "jaxseg.data.pipeline",
}

__all__ = ["DATASETS", "DataError", "DatasetInfo", "Source", "dataset_info", "open_split", *_LAZY]


def dataset_info(config_data: Any) -> DatasetInfo:
  """Classes and palette of the dataset that `config_data.name` names; reads no picture.

  Raises:
    DataError: unknown name, or settings that do not fit the dataset.
  """
  return _module(config_data.name).info(config_data)


def open_split(config_data: Any, split: str) -> Source:
  """The examples of a split, or of several ("train+val"); files are checked and prepared on first use.

  Raises:
    DataError: unknown dataset or split, or files that are missing or wrong.
  """
  module = _module(config_data.name)
  sources = tuple(module.open_split(config_data, name) for name in split.split("+"))
  return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _module(name: str):
  if name not in DATASETS:
    raise DataError(f"there is no dataset called {name!r}; {suggestion(name, DATASETS)}")
  return lazy.load(DATASETS[name])


def __getattr__(name: str):
  return lazy.attribute(__name__, _LAZY, name)
