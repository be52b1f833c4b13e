"""What each key of a config may hold: from a Linen field, a line of `schema.py`, or its value's type."""

import re
from collections.abc import Iterator
from typing import Any, Literal

import ml_collections

from jaxseg import catalog, models
from jaxseg.config import schema
from jaxseg.config.parts import PARTS, parts_of
from jaxseg.config.schema import Key
from jaxseg.config.values import ANY, Range, check

DTYPES = ("float32", "bfloat16")

# Ranges of numbers in Linen fields, by the field's name; the first that fullmatches. Their annotations say
# kind and length.
_RANGES: tuple[tuple[str, Range], ...] = (
  ("depths|num_blocks|stage_sizes", Range(1, 200)),
  (r".*dropout_rate|drop_path_rate", Range(0.0, 1.0, below=True)),
  ("norm_epsilon|norm_momentum", Range(0.0, 1.0, above=True)),
  ("layer_scale", Range(0.0, 100.0)),
  ("inv_t|width_multiplier", Range(0.0, 1000.0, above=True)),
  ("rates|dilations|multi_grid|pool_window", Range(1, 1024)),
  ("output_stride", ANY),  # `check_output_stride` knows what each encoder gives
  ("num_convs", Range(0, 100)),
  ("train_steps|eval_steps", Range(1, 1000)),
  ("num_classes", Range(1, 10**6)),
  ("position_size", Range(1, 4096)),
  ("images_at_once", Range(0, 65_536)),
)
_FIELD = Range(1, 16_384)  # widths, kernel sizes, numbers of heads and groups


def name_of(config: ml_collections.ConfigDict) -> str:
  """`config.task`; the config of an older run has none."""
  return config.get("task", "segmentation")


def field_key(name: str, annotation: Any) -> Key:
  """What a Linen field may hold."""
  if name == "dtype":
    return Key(Literal["float32", "bfloat16"] | None, "of this part's computation; None is config.dtype")
  allowed = next((a for pattern, a in _RANGES if re.fullmatch(pattern, name)), _FIELD)
  return Key(annotation, "a field of the module", allowed)


def key_of(config: ml_collections.ConfigDict, name: str) -> Key:
  """What the dotted key `name` of `config` may hold."""
  group, _, part = name.rpartition(".")
  if group.startswith("model.") and group.removeprefix("model.") in PARTS:
    arch = config.model.arch
    if arch in models.list_models():
      for known, entry, _ in parts_of(arch):
        if known == group.removeprefix("model."):
          fields = catalog.fields(entry)
          if part in fields:
            return field_key(part, fields[part].type)
  return schema.key_of(name, name_of(config)) or Key(_annotation_like(config, name), "a key of this config")


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
  """The dotted names of every value of `config`."""
  names = []
  for key in config:
    nested = isinstance(config[key], ml_collections.ConfigDict)
    names += leaves(config[key], f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
  return names


def get(config: ml_collections.ConfigDict, name: str) -> Any:
  """The value of a dotted key."""
  for part in name.split("."):
    config = config[part]
  return config


def check_values(config: ml_collections.ConfigDict) -> None:
  """Every value of a config, each for itself: kind, choices, length, range.

  Raises:
    UserError: the key, its value, what is expected.
  """
  # A value that others refer to is named itself, not by those.
  for name in sorted(leaves(config), key=lambda name: name.count(".")):
    key = key_of(config, name)
    check(f"config.{name}", get(config, name), key.annotation, key.allowed)


def _annotation_like(config: ml_collections.ConfigDict, name: str) -> Any:
  """Of a key that is in no table: the type that its value has, a tuple's kinds and length included."""
  group, _, last = name.rpartition(".")
  node = get(config, group) if group else config
  value, kind = node[last], node.get_type(last)
  if value is None:
    return Any if kind is type(None) else kind | None
  if not isinstance(value, tuple):
    return kind
  return tuple[tuple(map(type, value))] if value else tuple[Any, ...]


def table(task: str) -> Iterator[tuple[str, Key]]:
  """(dotted key, entry) of every key of a task beside the model's fields, for the documentation."""
  yield from schema.TASK_KEYS[task].items()
