"""Where weights come from: a file, a directory, a workdir of train.py, or the Hugging Face hub."""

import dataclasses
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.readers import SUFFIXES, read_file
from jaxseg.pretrained.weights import Meta, Weights, meta_of_ours
from jaxseg.types import Preprocess

_CONFIG = "config.json"
_CHECKPOINTS = "checkpoints"
_BEST = "best"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What a transformers config of SegFormer may state and our encoder has no field for.
_MIT = {
  "hidden_act": "gelu",
  "num_channels": 3,
  "num_encoder_blocks": 4,
  "patch_sizes": (7, 3, 3, 3),
  "strides": (4, 2, 2, 2),
}
# PIL's codes, which transformers' processors store.
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass
class Workdir:
  """A training run's directory: its config says the model, its checkpoints hold the arrays.

  `checkpoints` is a path or a gs:// address, as `jaxseg.checkpoint` takes it.
  """

  path: str
  checkpoints: str
  meta: Meta


def open_source(source: str | os.PathLike) -> Weights | Workdir:
  """The weights that `source` names, with what is said about them.

  Args:
    source: a weight file; a directory that `save_pretrained` (ours or transformers') or
      train.py wrote; or "org/name" on the Hugging Face hub.

  Raises:
    UserError: nothing of that name, or nothing in it that can be read.
  """
  text = os.fspath(source)
  if "://" in text:
    return _remote_workdir(text)
  path = pathlib.Path(text).expanduser()
  if path.is_file():
    return _with_neighbours(read_file(path))
  if path.is_dir():
    return read_directory(path)
  if _HUB_NAME.fullmatch(text) and not text.endswith(SUFFIXES):
    return read_directory(_download(text))
  return read_file(path)


def read_directory(path: pathlib.Path) -> Weights | Workdir:
  """A workdir, or the weight file of a directory with its config.json and preprocessor_config.json."""
  config = _json(path / _CONFIG)
  if (path / _CHECKPOINTS).is_dir():
    if "jaxseg_version" not in config:
      raise UserError(f"{path} has checkpoints but no {_CONFIG} of train.py, so the model is unknown")
    return Workdir(str(path), str(path / _CHECKPOINTS), meta_of_ours(config))
  shards = _json(path / "model.safetensors.index.json") or _json(path / "pytorch_model.bin.index.json")
  if shards:
    return _read_shards(path, sorted(set(shards.get("weight_map", {}).values())), _meta(path))
  weights = read_file(_only_file(path))
  weights.meta = _merged(_meta(path), weights.meta)
  return weights


def _meta(path: pathlib.Path) -> Meta:
  config = _json(path / _CONFIG)
  if "jaxseg_version" in config:
    return meta_of_ours(config)
  labels = config.get("id2label") or {}
  classes = tuple(labels[key] for key in sorted(labels, key=int)) or None
  if classes and all(re.fullmatch(r"LABEL_\d+", name) for name in classes):
    classes = None  # transformers' own filler
  encoder = _mit_fields(config, path / _CONFIG) if config.get("model_type") == "segformer" else None
  processor = _processor(_json(path / "preprocessor_config.json"))
  return Meta(classes=classes, preprocess=processor, encoder=encoder)


def _mit_fields(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """What a transformers config says of MiT and no tensor shows.

  Raises:
    UserError: something that our MiT does not have.
  """
  for key, ours in _MIT.items():
    value = config.get(key, ours)
    value = tuple(value) if isinstance(value, list) else value
    if value != ours:
      raise UserError(f"{path} has {key} = {value!r}; MiT here has {ours!r}, as every published SegFormer")
  heads = config.get("num_attention_heads")
  return {"num_heads": tuple(heads)} if heads else {}


def _processor(config: Mapping[str, Any]) -> Preprocess | None:
  """A transformers image processor's statistics, which are for an image scaled to 0..1 first."""
  if not config:
    return None
  scale = 1.0 / float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
  normalise = config.get("do_normalize", True)
  mean = config.get("image_mean", (0.0,) * 3) if normalise else (0.0,) * 3
  std = config.get("image_std", (1.0,) * 3) if normalise else (1.0,) * 3
  size = config.get("size") if config.get("do_resize", True) else None
  if isinstance(size, Mapping):
    size = (int(size["height"]), int(size["width"])) if {"height", "width"} <= set(size) else None
  elif isinstance(size, int):
    size = (size, size)
  return Preprocess(
    mean=tuple(float(v) * scale for v in mean),
    std=tuple(float(v) * scale for v in std),
    size=tuple(size) if size else None,
    resize=_RESAMPLE.get(config.get("resample", 2), "bilinear"),
  )


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


def _read_shards(path: pathlib.Path, names: list[str], meta: Meta) -> Weights:
  whole = Weights({}, path, meta=meta)
  for name in names:
    # An index is data as well: it may only name files of its own directory.
    if pathlib.Path(name).name != name:
      raise UserError(f"{path}: the index names {name!r}, expected a file of the same directory")
    part = read_file(path / name)
    whole.tensors |= part.tensors
    whole.opaque |= part.opaque
  return whole


def _json(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text())
  except (ValueError, OSError) as error:
    raise UserError(f"{path} is no readable JSON ({error})") from None
  if not isinstance(value, dict):
    raise UserError(f"{path} holds a {type(value).__name__}, expected an object")
  return value


def _remote_workdir(address: str) -> Workdir:
  from etils import epath

  path = epath.Path(address)
  if not (path / _CONFIG).exists():
    raise UserError(f"{address} is no workdir of train.py: it has no {_CONFIG}; copy weight files here first")
  return Workdir(address, str(path / _CHECKPOINTS), meta_of_ours(json.loads((path / _CONFIG).read_text())))


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


def _download(name: str) -> pathlib.Path:
  """A snapshot of a hub repository's weights and configs, from the cache where it is there."""
  try:
    import huggingface_hub
  except ImportError:
    raise UserError(
      f"there is no file or directory {name!r}; if it is meant on the Hugging Face hub,"
      ' install the client with `pip install "jaxseg[hub]"`'
    ) from None
  try:
    for weights in ("*.safetensors", "*.bin"):
      found = huggingface_hub.snapshot_download(name, allow_patterns=[weights, "*.json"])
      if any(pathlib.Path(found).glob(weights)):
        break
  except Exception as error:  # the client raises its own, httpx's and OSError's kinds
    raise UserError(
      f"there is no file or directory {name!r}, and the Hugging Face hub did not give it"
      f" ({type(error).__name__}); check the name or the network;"
      " offline, only what was downloaded before is found"
    ) from None
  return pathlib.Path(found)
