"""Where weights come from: a file, a directory, a workdir of train.py, or the Hugging Face hub."""

import dataclasses
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.readers import SUFFIXES, read_file
from jaxseg.pretrained.schema import (
  Meta,
  meta_of_ours,
  meta_of_transformers,
  parse_json,
  preprocess_of,
  read_json,
  value_range_of_run,
)
from jaxseg.pretrained.untrusted import reading, shown
from jaxseg.pretrained.weights import Weights

_CONFIG = "config.json"
_CHECKPOINTS = "checkpoints"
_BEST = "best"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclasses.dataclass
class Workdir:
  """A training run's directory: its config says the model, its checkpoints hold the arrays.

  `checkpoints` is a path or a gs:// address, as `jaxseg.checkpoint` takes it.
  """

  path: str
  checkpoints: str
  meta: Meta


def open_source(source: str | os.PathLike, *, revision: str | None = None) -> Weights | Workdir:
  """The weights that `source` names, with what is said about them.

  Args:
    source: a weight file; a directory that `save_pretrained` (ours or transformers') or train.py
      wrote; a workdir on gs://; "org/name" or "hf://org/name@revision" on the Hugging Face hub.
    revision: branch, tag or commit of a hub repository.

  Raises:
    UserError: nothing of that name, or nothing in it that can be read.
  """
  text = os.fspath(source)
  if hub := _HUB_ADDRESS.fullmatch(text):
    if revision and hub[2] and revision != hub[2]:
      raise UserError(f"{text} names the revision {hub[2]}, and revision= is {revision!r}; give one of them")
    return read_directory(_download(hub[1], hub[2] or revision))
  if text.startswith("hf://"):
    raise UserError(f"{text} is not an address on the hub, expected hf://org/name or hf://org/name@revision")
  path = pathlib.Path(text).expanduser()
  if "://" not in text and not path.exists() and _is_hub_name(text):
    return read_directory(_download(text, revision))
  if revision is not None:
    raise UserError(f"{text} is not on the hub and has no revision {revision!r}; leave revision out")
  if text.startswith(("http://", "https://")):
    raise UserError(f"{text} is a web address, which is not read; download the file and give its path")
  if "://" in text:
    return _remote_workdir(text)
  if path.is_dir():
    return read_directory(path)
  return _with_neighbours(read_file(path))


def _is_hub_name(text: str) -> bool:
  """Whether it can only be meant on the hub: a mistyped local path is not asked for there."""
  local = text.endswith(SUFFIXES) or text.startswith((".", "~")) or pathlib.Path(text).parent.is_dir()
  return _HUB_NAME.fullmatch(text) is not None and not local


def read_directory(path: pathlib.Path) -> Weights | Workdir:
  """A workdir, or the weight file of a directory with its config.json and preprocessor_config.json."""
  config = read_json(path / _CONFIG)
  if (path / _CHECKPOINTS).is_dir():
    if "jaxseg_version" not in config:
      raise UserError(f"{path} has checkpoints but no {_CONFIG} of train.py, so the model is unknown")
    return Workdir(str(path), str(path / _CHECKPOINTS), _meta_of_run(config, path / _CONFIG))
  shards = read_json(path / "model.safetensors.index.json") or read_json(
    path / "pytorch_model.bin.index.json"
  )
  if shards:
    return _read_shards(path, shards.get("weight_map"), _meta(path))
  weights = read_file(_only_file(path))
  weights.meta = _merged(_meta(path), weights.meta)
  return weights


def _meta_of_run(config: dict[str, Any], path: Any) -> Meta:
  """`meta_of_ours` of a workdir: every run has classes, and only saved encoders have none."""
  meta = meta_of_ours(config, path)
  if not (meta.model and meta.model.get("num_classes")):
    raise UserError(
      f"{path} does not say model.num_classes, as train.py wrote it; bring back a copy of the file"
    )
  if meta.preprocess is not None:
    fields = {**dataclasses.asdict(meta.preprocess), "value_range": value_range_of_run(config)}
    meta.preprocess = preprocess_of(fields, f"{path}: ")
  return meta


def _meta(path: pathlib.Path) -> Meta:
  config = read_json(path / _CONFIG)
  if "jaxseg_version" in config:
    return meta_of_ours(config, path / _CONFIG)
  return meta_of_transformers(config, read_json(path / "preprocessor_config.json"), path)


def _merged(first: Meta, second: Meta) -> Meta:
  """The first's words, the second's where it is silent."""
  words = {f.name: getattr(first, f.name) for f in dataclasses.fields(Meta)}
  return Meta(**{key: getattr(second, key) if value is None else value for key, value in words.items()})


def _with_neighbours(weights: Weights) -> Weights:
  """A file that a `save_pretrained` wrote, opened by itself: the configs beside it still hold."""
  standard = ("model.safetensors", "pytorch_model.bin")
  if weights.path.name in standard and (weights.path.parent / _CONFIG).is_file():
    weights.meta = _merged(_meta(weights.path.parent), weights.meta)
  return weights


def _only_file(path: pathlib.Path) -> pathlib.Path:
  for name in ("model.safetensors", "pytorch_model.bin"):
    if (path / name).is_file():
      return path / name
  files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
  preferred = [p for p in files if p.suffix == ".safetensors"] or files
  if len(preferred) == 1:
    return preferred[0]
  if not files:
    raise UserError(
      f"{path} holds no weights: neither a file ending in {', '.join(SUFFIXES)} nor checkpoints/"
    )
  raise UserError(
    f"{path} holds several weight files ({', '.join(p.name for p in files[:6])}); name one of them"
  )


def _read_shards(path: pathlib.Path, places: Any, meta: Meta) -> Weights:
  names = list(places.values()) if isinstance(places, Mapping) else [None]
  whole = Weights({}, path, meta=meta)
  # An index is data as well: it may only name files of its own directory.
  if wrong := [
    n for n in names if not isinstance(n, str) or pathlib.Path(n).name != n or not n.endswith(SUFFIXES)
  ]:
    raise UserError(f"{path}: the index names '{shown(wrong[0])}', expected a file of the same directory")
  for name in sorted(set(names)):
    part = read_file(path / name)
    whole.tensors |= part.tensors
    whole.opaque |= part.opaque
  return whole


def _remote_workdir(address: str) -> Workdir:
  from etils import epath

  path = epath.Path(address)
  with reading(address):
    if not (path / _CONFIG).exists():
      raise UserError(
        f"{address} is not a workdir of train.py: it has no {_CONFIG}; copy weight files here first"
      )
    config = parse_json((path / _CONFIG).read_bytes(), f"{address}/{_CONFIG}")
  return Workdir(address, str(path / _CHECKPOINTS), _meta_of_run(config, path / _CONFIG))


def read_best(workdir: str) -> Weights | None:
  """The weights of a workdir's folder `best`, local or on a bucket; None where it has none."""
  from etils import epath

  file = epath.Path(workdir) / _BEST / "model.safetensors"
  if not file.exists():
    return None
  if "://" not in str(workdir):
    return read_file(pathlib.Path(file))
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / file.name
    copy.write_bytes(file.read_bytes())
    weights = read_file(copy)
    weights.tensors = {name: np.array(value) for name, value in weights.tensors.items()}
    return weights


def _download(name: str, revision: str | None) -> pathlib.Path:
  """A snapshot of a hub repository's weights and configs, from the cache where it is there."""
  where = f"there is no file or directory {name!r}"
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(
      f'{where}; if it is meant on the Hugging Face hub, install the client with `pip install "jaxseg[hub]"`'
    ) from None
  try:
    for weights in ("*.safetensors", "*.bin"):
      found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[weights, "*.json"])
      if any(pathlib.Path(found).glob(weights)):
        break
  except Exception as error:  # the client raises its own, httpx's and OSError's kinds
    raise UserError(
      f"{where}, and the Hugging Face hub did not give it{f' at {revision}' if revision else ''}"
      f" ({type(error).__name__}); check the name or the network;"
      " offline, only what was downloaded before is found"
    ) from None
  return pathlib.Path(found)
