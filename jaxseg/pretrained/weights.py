"""What a reader hands on: named arrays, what stands beside them, and what the file says of itself."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.types import Preprocess

# Where checkpoints of training frameworks keep the weights, most specific first.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net")
# What wrappers of a model put before every name (DataParallel, torch.compile, Lightning).
_PREFIXES = ("module.", "_orig_mod.", "model.")
_CHOICES = {"channel_order": ("rgb", "bgr"), "resize": ("bilinear", "bicubic", "nearest")}


@dataclasses.dataclass
class Meta:
  """What a file or a directory says about its model; None is "nothing said".

  Attributes:
    model: arch, num_classes, encoder and decoder fields, as our own config.json holds them.
    encoder: fields of the encoder that a published config beside the tensors states.
    palette: (k, 3) uint8 RGB.
  """

  model: Mapping[str, Any] | None = None
  encoder: Mapping[str, Any] | None = None
  classes: tuple[str, ...] | None = None
  palette: np.ndarray | None = None
  preprocess: Preprocess | None = None
  licence: str | None = None
  layout: str | None = None
  assumed: Mapping[str, str] | None = None


@dataclasses.dataclass
class Weights:
  """Named arrays in the file's order.

  Attributes:
    tensors: published name → array, possibly a strided read-only view.
    opaque: name → what stands there instead of a tensor, in words.
    meta: the file's own metadata.
    path: for messages and for matching records.
  """

  tensors: dict[str, np.ndarray]
  path: pathlib.Path
  opaque: dict[str, str] = dataclasses.field(default_factory=dict)
  meta: Meta = dataclasses.field(default_factory=Meta)


def collect(items: Mapping[Any, Any], path: pathlib.Path, *, meta: Meta | None = None) -> Weights:
  """Sorts the entries of a state dict into arrays and the rest, without the wrappers' prefixes."""
  names = list(map(str, items))
  prefix = _common_prefix(names)
  tensors, opaque = {}, {}
  for name, value in zip(names, items.values(), strict=True):
    short = name.removeprefix(prefix)
    if isinstance(value, np.ndarray | np.generic):
      tensors[short] = np.asarray(value)
    else:
      opaque[short] = getattr(value, "kind", type(value).__name__)
  return Weights(tensors, path, opaque, meta or Meta())


def unwrap(content: Any, is_tensor, path: pathlib.Path) -> Mapping[Any, Any]:
  """The state dict inside a checkpoint that may also hold optimizer state, epochs, arguments.

  Args:
    content: what the file holds.
    is_tensor: value → whether it can become an array.

  Raises:
    UserError: nothing in the file looks like a state dict.
  """
  found = _find(content, is_tensor)
  if found is None:
    what = getattr(content, "kind", type(content).__name__)
    if mapping := as_mapping(content):
      what = f"a {type(content).__name__} with the keys {', '.join(map(repr, list(mapping)[:8]))}"
    elif hasattr(content, "kind"):
      what = f"a pickled {what} object, whose code is never run; save its state_dict()"
    raise UserError(f"{path} holds no named tensors: it is {what}")
  return found


def as_mapping(value: Any) -> Mapping[Any, Any]:
  """`value` itself if it is a mapping, the entries of a placeholder for some dict class, or nothing."""
  if isinstance(value, Mapping):
    return value
  return getattr(value, "entries", {})


def training_meta(content: Any) -> Meta:
  """What mmcv and mmengine write beside the weights: class names, colours, the image statistics."""
  meta = as_mapping(as_mapping(content).get("meta"))
  dataset = as_mapping(meta.get("dataset_meta")) or meta
  classes = dataset.get("classes", dataset.get("CLASSES"))
  palette = dataset.get("palette", dataset.get("PALETTE"))
  classes = classes if isinstance(classes, list | tuple) else ()
  if not (classes and all(isinstance(name, str) for name in classes)):
    classes = None
  text = meta.get("cfg", meta.get("config"))
  return Meta(
    classes=tuple(classes) if classes else None,
    palette=_palette(palette),
    preprocess=_statistics(text) if isinstance(text, str) else None,
  )


def meta_of_ours(config: Mapping[str, Any]) -> Meta:
  """What a config.json of `save_pretrained` or train.py says."""
  classes, palette, preprocess = (config.get(key) for key in ("classes", "palette", "preprocess"))
  return Meta(
    model=config.get("model"),
    classes=tuple(classes) if classes else None,
    palette=np.array(palette, np.uint8).reshape(-1, 3) if palette else None,
    preprocess=preprocess_of(preprocess) if preprocess else None,
    licence=config.get("licence"),
    layout=config.get("layout"),
    assumed=config.get("assumed"),
  )


def preprocess_of(fields: Mapping[str, Any] | Preprocess) -> Preprocess:
  """A `Preprocess` from its fields as JSON holds them.

  Raises:
    UserError: unknown fields, or a mean or std that is not three numbers.
  """
  if isinstance(fields, Preprocess):
    return fields
  known = [field.name for field in dataclasses.fields(Preprocess)]
  if wrong := sorted(set(fields) - set(known)):
    raise UserError(f"preprocess has no field {wrong[0]!r}; known: {', '.join(known)}")
  values = dict(fields)
  for key in sorted({"mean", "std"} & set(values)):
    try:
      values[key] = tuple(float(number) for number in values[key])
    except (TypeError, ValueError):
      values[key] = ()
    if len(values[key]) != 3 or (key == "std" and 0.0 in values[key]):
      raise UserError(f"preprocess.{key} is {fields[key]!r}, expected three numbers for R, G, B in 0..255")
  for key, allowed in _CHOICES.items():
    if values.get(key, allowed[0]) not in allowed:
      raise UserError(f"preprocess.{key} is {values[key]!r}, expected one of {', '.join(allowed)}")
  if values.get("size") is not None:
    values["size"] = tuple(int(n) for n in values["size"])
  return Preprocess(**values)


def _find(content: Any, is_tensor) -> Mapping[Any, Any] | None:
  entries = as_mapping(content)
  for key in _WRAPPERS:
    if (inner := entries.get(key)) is not None and (found := _find(inner, is_tensor)) is not None:
      return found
  return entries if any(is_tensor(value) for value in entries.values()) else None


def _common_prefix(names: list[str]) -> str:
  found = ""
  while names:
    prefix = next((p for p in _PREFIXES if all(n.startswith(found + p) for n in names)), None)
    if prefix is None:
      return found
    found += prefix
  return found


def _palette(value: Any) -> np.ndarray | None:
  try:
    array = np.asarray(value, np.float64)
  except (TypeError, ValueError):
    return None
  in_range = array.ndim == 2 and array.shape[-1] == 3 and array.min() >= 0 and array.max() <= 255
  return array.astype(np.uint8) if in_range else None


def _statistics(text: str) -> Preprocess | None:
  """Image statistics of an mmseg config's text, in the order of RGB as it writes them."""
  values = {}
  for key in ("mean", "std"):
    match = re.search(rf"\b{key}\s*=\s*[\[(]([-\d.,eE\s]+)[\])]", text)
    numbers = [float(v) for v in match[1].split(",") if v.strip()] if match else []
    if len(numbers) != 3:
      return None
    values[key] = tuple(numbers)
  return Preprocess(**values)
