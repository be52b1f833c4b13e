"""Data: bytes on disk → batches. Datasets by name, and the two iterators over them.

A dataset is one module with `info(config_data)` and `original(config_data)`, which says where its files lie
(`preparing.Original`), or, where nothing is prepared, `open_split(config_data, split)`; its line in
`DATASETS` is all it takes to be known everywhere in the library. Tests and docs want a few lines more
(CONTRIBUTING.md). Modules are imported on first use: `import jaxseg.data` loads neither TFDS, Grain nor
OpenCV.
"""

from collections.abc import Sequence
from typing import Any

from jaxseg import bucket, lazy
from jaxseg.catalog import suggestion
from jaxseg.data.joined import JoinedSource
from jaxseg.data.source import DataError, DatasetInfo, Source

DATASETS = {
  "ade20k": "jaxseg.data.ade20k",
  "camvid": "jaxseg.data.camvid",
  "cityscapes": "jaxseg.data.cityscapes",
  "coco_stuff_10k": "jaxseg.data.coco_stuff",
  "coco_stuff_164k": "jaxseg.data.coco_stuff",
  "folder": "jaxseg.data.folder",
  "imagenet": "jaxseg.data.imagenet",
  "isaid": "jaxseg.data.isaid",
  "pascal_context_59": "jaxseg.data.pascal_context",
  "pascal_context_60": "jaxseg.data.pascal_context",
  "synthetic": "jaxseg.data.synthetic",
  "synthetic_classes": "jaxseg.data.synthetic_classes",
  "voc": "jaxseg.data.voc",
}

# Data sets of other libraries, by the beginning of their names.
PREFIXES = {"tfds:": "jaxseg.data.tfds", "hf:": "jaxseg.data.hugging_face"}

# Public name → the module that defines it (PEP 562).
_LAZY = {
  "batches": "jaxseg.data.pipeline",
  "check_dataset": "jaxseg.data.check",
  "check_labels": "jaxseg.data.check",
  "class_weights": "jaxseg.data.statistics",
  "classifier_eval_batches": "jaxseg.data.classification_batches",
  "classifier_train_batches": "jaxseg.data.classification_batches",
  "distort": "jaxseg.data.color",
  "eval_batches": "jaxseg.data.pipeline",
  "label_histogram": "jaxseg.data.statistics",
  "make_rule": "jaxseg.data.transforms",
  "prefetch_to_devices": "jaxseg.data.feed",
  "replay": "jaxseg.data.draws",
  "train_batches": "jaxseg.data.pipeline",
  "zero_padding": "jaxseg.data.color",
}

__all__ = [
  "DATASETS", "PREFIXES", "DataError", "DatasetInfo", "Source", "dataset_info", "dataset_module",
  "open_split", "prepare", *_LAZY,
]  # fmt: skip

# What to do about a folder on a bucket.
_BRING = (
  "copy it to each host (gcloud storage rsync --recursive {} FOLDER) or mount the bucket, and give that"
  " folder (docs/launch.md)"
)


def dataset_info(config_data: Any) -> DatasetInfo:
  """Classes and palette of the dataset that `config_data.name` names; reads no picture.

  Raises:
    DataError: unknown name, or settings that do not fit the dataset.
  """
  module = dataset_module(config_data.name)
  _reach(config_data)
  return module.info(config_data)


def open_split(config_data: Any, split: str) -> Source:
  """The examples of a split, or of several ("train+val"); files are checked and prepared on first use.

  Raises:
    DataError: unknown dataset or split, or files that are missing or wrong.
  """
  module = dataset_module(config_data.name)
  _check_on_disk(config_data, module)
  _reach(config_data)
  if hasattr(module, "open_split"):
    sources = tuple(module.open_split(config_data, name) for name in split.split("+"))
  else:
    preparing, original = lazy.load("jaxseg.data.preparing"), module.original(config_data)
    parts = split.split("+")
    sources = tuple(preparing.open_split(original, name, data_dir=config_data.data_dir) for name in parts)
  return sources[0] if len(sources) == 1 else JoinedSource(sources)


def prepare(config_data: Any, *, beam_runner: str = "", beam_options: Sequence[str] = ()) -> None:
  """Writes a dataset's files into `data_dir`, unless they are there; `open_split` does it by itself too.

  Args:
    config_data: reads name, manual_dir, data_dir, and what the dataset reads.
    beam_runner: "" writes in this process; "DirectRunner", "DataflowRunner", ... writes the
      parts in parallel through Apache Beam, which the `beam` extra brings.
    beam_options: Beam's own flags, as ("--direct_num_workers=4", ...).

  Raises:
    DataError: unknown dataset, or files that are missing or wrong.
  """
  module = dataset_module(config_data.name)
  if not hasattr(module, "original"):
    return  # drawn on the fly
  if not beam_runner:
    _check_on_disk(config_data, module)
  _reach(config_data)
  lazy.load("jaxseg.data.preparing").prepare(
    module.original(config_data),
    data_dir=config_data.data_dir,
    beam_runner=beam_runner,
    beam_options=beam_options,
  )


def _reach(config_data: Any) -> None:
  """Raises DataError where the original files lie on a bucket that does not answer."""
  folder = str(getattr(config_data, "manual_dir", ""))
  if "://" in folder:
    try:
      bucket.reach(folder)
    except ValueError as error:
      raise DataError(f"data.manual_dir is {folder!r}, and {error}; {_BRING.format(folder)}") from None


def _check_on_disk(config_data: Any, module: Any) -> None:
  """Raises DataError where prepared data lie on a bucket, on which ArrayRecord opens nothing."""
  folder = str(getattr(config_data, "data_dir", ""))
  if "://" in folder and hasattr(module, "original"):
    raise DataError(
      f"data.data_dir is {folder!r}, but prepared data are written to and read from a disk;"
      f" {_BRING.format(folder)}"
    )


def dataset_module(name: str) -> Any:
  """The module of a dataset: one of `DATASETS`, or of `PREFIXES`.

  Raises:
    DataError: there is no dataset of this name.
  """
  for prefix, module in PREFIXES.items():
    if name.startswith(prefix):
      return lazy.load(module)
  if name not in DATASETS:
    raise DataError(
      f"there is no dataset called {name!r}; {suggestion(name, DATASETS)}, or tfds:NAME, or hf:ORG/NAME"
    )
  return lazy.load(DATASETS[name])


def __getattr__(name: str):
  return lazy.attribute(__name__, _LAZY, name)
