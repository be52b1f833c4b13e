"""What a reader hands on: named arrays, what stands beside them, and what the file says of itself."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.schema import Meta, is_names, is_palette, preprocess_of
from jaxseg.pretrained.untrusted import shown, some
from jaxseg.types import Preprocess

# Moving averages of the weights, which timm, DeiT and ConvNeXt keep beside the last ones and evaluate.
# (mmengine swaps the two when it saves: its "ema_state_dict" holds the last ones.)
_AVERAGES = ("state_dict_ema", "model_ema")
# Where checkpoints of training frameworks keep the weights, most specific first.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net")
_MAX_WRAPPERS = 6
# What wrappers of a model put before every name (DataParallel, torch.compile, Lightning).
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MAX_NAME = 300


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
  """Sorts the entries of a state dict into arrays and the rest, without the wrappers' prefixes.

  Raises:
    UserError: a tensor's name is longer than any model's.
  """
  names = [name for name in items if isinstance(name, str)]
  if long := next((name for name in names if len(name) > _MAX_NAME), None):
    raise UserError(f"{path} has a tensor name of {len(long)} letters ('{shown(long)}'), over {_MAX_NAME}")
  prefix = _common_prefix(names)
  tensors, opaque = {}, {}
  for name in names:
    short, value = name.removeprefix(prefix), items[name]
    if isinstance(value, np.ndarray | np.generic):
      tensors[short] = np.asarray(value)
    else:
      opaque[short] = getattr(value, "kind", type(value).__name__)
  return Weights(tensors, path, opaque, meta or Meta())


def unwrap(
  content: Any, is_tensor: Callable[[Any], bool], path: pathlib.Path
) -> tuple[Mapping[Any, Any], str | None]:
  """The state dict inside a checkpoint that may also hold optimizer state, epochs, arguments.

  Args:
    content: what the file holds.
    is_tensor: value → whether it can become an array.

  Returns:
    the state dict, and the key it stood under where that is a moving average (preferred to the last weights).

  Raises:
    UserError: nothing in the file looks like a state dict.
  """
  for key in (*_AVERAGES, None):
    inner = content if key is None else as_mapping(content).get(key)
    if (found := _find(inner, is_tensor)) is not None:
      return found, key
  what = shown(getattr(content, "kind", type(content).__name__))
  if mapping := as_mapping(content):
    keys = (repr(key) if isinstance(key, str | int) else "..." for key in list(mapping)[:8])
    what = f"a {type(content).__name__} with the keys {some(keys, 8)}"
  elif hasattr(content, "kind"):
    what = f"a pickled {what} object, whose code is never run; save its state_dict()"
  raise UserError(f"{path} holds no named tensors: it is {what}")


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
  text = meta.get("cfg", meta.get("config"))
  return Meta(
    classes=tuple(classes) if classes and is_names(classes) else None,
    palette=np.array(palette, np.float64).astype(np.uint8) if palette and is_palette(palette) else None,
    preprocess=_statistics(text[: 1 << 20]) if isinstance(text, str) else None,
  )


def _find(content: Any, is_tensor: Callable[[Any], bool], depth: int = 0) -> Mapping[Any, Any] | None:
  """The innermost dict of tensors along the wrappers' keys; each level's first wrapper decides."""
  entries = as_mapping(content)
  inner = next((entries[key] for key in _WRAPPERS if as_mapping(entries.get(key))), None)
  if inner is not None and depth < _MAX_WRAPPERS:
    found = _find(inner, is_tensor, depth + 1)
    if found is not None:
      return found
  return entries if any(is_tensor(value) for value in entries.values()) else None


def _common_prefix(names: list[str]) -> str:
  found = ""
  for _ in range(_MAX_WRAPPERS if names else 0):
    prefix = next((p for p in _PREFIXES if all(n.startswith(found + p) for n in names)), None)
    if prefix is None:
      break
    found += prefix
  return found


def _statistics(text: str) -> Preprocess | None:
  """Image statistics of an mmseg config's text, in the order of RGB as it writes them."""
  values = {}
  for key in ("mean", "std"):
    match = re.search(rf"\b{key} {{0,8}}= {{0,8}}[\[(]([-\d.,eE\s]{{1,200}})[\])]", text)
    values[key] = match[1].rstrip(", \n").split(",") if match else ()
  try:
    return preprocess_of({key: [float(number) for number in numbers] for key, numbers in values.items()})
  except ValueError:  # also a UserError: a config of another kind says nothing
    return None
