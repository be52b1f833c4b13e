"""What a file or a directory says of its model, read through one schema: config.json and its like.

Every value of a JSON file that is used goes through a check here; what is malformed is one
sentence with the file, the key and what was expected.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.untrusted import MAX_BLOCKS, shown
from jaxseg.types import Preprocess

_CHOICES = {"channel_order": ("rgb", "bgr"), "resize": ("bilinear", "bicubic", "nearest")}
_MAX_CLASSES = 100_000
# Fields of modules that say how many layers there are: each costs time before anything is compared.
_COUNTS = ("depths", "num_blocks", "stage_sizes", "num_convs", "rates", "scales")
# What a transformers config of SegFormer may state and our encoder has no field for.
_MIT = {
  "hidden_act": "gelu",
  "num_channels": 3,
  "num_encoder_blocks": 4,
  "patch_sizes": [7, 3, 3, 3],
  "strides": [4, 2, 2, 2],
}
# PIL's codes, which transformers' processors store.
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass
class Meta:
  """What a file or a directory says about its model; None is "nothing said".

  Attributes:
    model: arch, num_classes, encoder and decoder fields, as our own config.json holds them.
    encoder: fields of the encoder that a published config beside the tensors states.
    palette: (k, 3) uint8 RGB.
    lineage: what the weights were made from, see `hub.Net`.
  """

  model: Mapping[str, Any] | None = None
  encoder: Mapping[str, Any] | None = None
  classes: tuple[str, ...] | None = None
  palette: np.ndarray | None = None
  preprocess: Preprocess | None = None
  licence: str | None = None
  layout: str | None = None
  assumed: Mapping[str, str] | None = None
  lineage: Mapping[str, str] | None = None


def parse_json(text: bytes | str, path: pathlib.Path) -> dict[str, Any]:
  """The object that a JSON text holds.

  Raises:
    UserError: it is not JSON, not an object, or names a key twice (readers then disagree on which counts).
  """

  def unique(pairs):
    made = dict(pairs)
    if len(made) < len(pairs):
      seen = set()
      twice = next(key for key, _ in pairs if key in seen or seen.add(key))
      raise UserError(f"{path} names '{shown(twice)}' twice; write it again")
    return made

  try:
    value = json.loads(text, object_pairs_hook=unique)
  except UserError:
    raise
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not readable JSON ({shown(str(error))}); download it again") from None
  if not isinstance(value, dict):
    raise UserError(f"{path} holds a {type(value).__name__}, expected an object")
  return value


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file, {} where there is no such file."""
  if not path.is_file():
    return {}
  try:
    return parse_json(path.read_bytes(), path)
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from None


def meta_of_ours(config: Mapping[str, Any], path: Any) -> Meta:
  """What a config.json of `save_pretrained` or train.py says.

  Raises:
    UserError: a value is not what its key holds; the message names `path` and the key.
  """
  get = _getter(config, path)
  model = get("model", _is_fields, "an object with arch, num_classes, encoder and decoder")
  if model is not None:
    inner = _getter(model, path, "model.")
    inner("arch", _is_text, "the name of a model")
    inner("num_classes", _is_class_count, "a number of classes")
    for part in ("encoder", "decoder", "aux_decoder"):
      check_counts(inner(part, _is_fields, "an object of fields") or {}, f"{path}: model.{part}")
    inner("scales", _is_numbers, "a list of numbers")
    inner("multi_label", lambda value: isinstance(value, bool), "true or false")
    check_counts(model, f"{path}: model")
  palette = get("palette", is_palette, "a list of [r, g, b] in 0..255")
  preprocess = get("preprocess", _is_fields, "an object with mean and std")
  classes = get("classes", is_names, "a list of names")
  return Meta(
    model=model,
    classes=tuple(classes) if classes else None,
    palette=np.array(palette, np.uint8).reshape(-1, 3) if palette else None,
    preprocess=preprocess_of(preprocess, f"{path}: ") if preprocess else None,
    licence=get("licence", _is_text, "a text"),
    layout=get("layout", _is_text, "the name of a layout"),
    assumed=get("assumed", _is_texts, "an object of texts"),
    lineage=get("lineage", _is_texts, "an object of texts"),
  )


def meta_of_transformers(config: Mapping[str, Any], processor: Mapping[str, Any], path: pathlib.Path) -> Meta:
  """What a transformers config.json and preprocessor_config.json say.

  Raises:
    UserError: a malformed value, or something that our MiT does not have.
  """
  get = _getter(config, path / "config.json")
  labels = get("id2label", _is_labels, "an object of number → name") or {}
  classes = tuple(labels[key] for key in sorted(labels, key=int)) or None
  if classes and all(re.fullmatch(r"LABEL_\d+", name) for name in classes):
    classes = None  # transformers' own filler
  encoder = None
  if config.get("model_type") == "segformer":
    for key, ours in _MIT.items():
      if (value := config.get(key, ours)) != ours:
        raise UserError(
          f"{path / 'config.json'} has {key} = {shown(json.dumps(value))}; MiT here has {ours!r}, as every"
          " published SegFormer"
        )
    heads = get("num_attention_heads", _is_whole_numbers, "a list of whole numbers")
    encoder = {"num_heads": tuple(heads)} if heads else {}
  return Meta(
    classes=classes, preprocess=_processor(processor, path / "preprocessor_config.json"), encoder=encoder
  )


def _processor(config: Mapping[str, Any], path: pathlib.Path) -> Preprocess | None:
  """A transformers image processor's statistics, which are for an image scaled to 0..1 first."""
  if not config:
    return None
  get = _getter(config, path)
  factor = get("rescale_factor", lambda v: _is_number(v) and v > 0, "a positive number") or 1 / 255
  scale = 1.0 / factor if config.get("do_rescale", True) else 1.0
  three = (lambda v: _is_numbers(v) and len(v) == 3, "three numbers")
  mean, std = get("image_mean", *three) or (0.0,) * 3, get("image_std", *three) or (1.0,) * 3
  if not config.get("do_normalize", True):
    mean, std = (0.0,) * 3, (1.0,) * 3
  size = get("size", lambda v: _is_fields(v) or _is_side(v), "a number or height and width")
  if isinstance(size, Mapping):
    size = (size["height"], size["width"]) if {"height", "width"} <= set(size) else None
  elif size is not None:
    size = (size, size)
  if not config.get("do_resize", True):
    size = None
  resample = config.get("resample", 2)
  fields = {
    "mean": [v * scale for v in mean],
    "std": [v * scale for v in std],
    "size": size,
    "resize": _RESAMPLE.get(resample, "bilinear") if type(resample) is int else "bilinear",
  }
  return preprocess_of(fields, f"{path}: ")


def preprocess_of(fields: Mapping[str, Any] | Preprocess, where: str = "") -> Preprocess:
  """A `Preprocess` from its fields as JSON holds them.

  Args:
    fields: mean, std, channel_order, size, resize, value_range; or a `Preprocess` as it is.
    where: what to say before the message: the file.

  Raises:
    UserError: unknown fields, or a value that no image statistics have (NaN, a std of 0, ...).
  """
  values = dataclasses.asdict(fields) if isinstance(fields, Preprocess) else dict(fields)
  known = [field.name for field in dataclasses.fields(Preprocess)]
  if wrong := sorted(set(values) - set(known)):
    raise UserError(f"{where}preprocess has no field '{shown(wrong[0])}'; known: {', '.join(known)}")
  for key in sorted({"mean", "std"} & set(values)):
    numbers = values[key]
    numbers = [float(n) for n in numbers] if _is_numbers(numbers) else []
    if not 1 <= len(numbers) <= 512 or (key == "std" and min(numbers) <= 0):
      raise UserError(
        f"{where}preprocess.{key} is {_brief(values[key])}, expected finite numbers"
        f"{' above 0' if key == 'std' else ''} in 0..255, one for each channel: R, G, B"
      )
    values[key] = tuple(numbers)
  for key, allowed in _CHOICES.items():
    if values.get(key, allowed[0]) not in allowed:
      raise UserError(
        f"{where}preprocess.{key} is {_brief(values[key])}, expected one of {', '.join(allowed)}"
      )
  if (size := values.get("size")) is not None:
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_side, size))):
      raise UserError(f"{where}preprocess.size is {_brief(size)}, expected height and width")
    values["size"] = tuple(size)
  value_range = values.get("value_range") or ()
  if value_range and not (
    _is_numbers(value_range) and len(value_range) == 2 and value_range[0] < value_range[1]
  ):
    raise UserError(
      f"{where}preprocess.value_range is {_brief(value_range)}, expected (low, high), the values that become"
      " 0 and 255 in images of more than 8 bits"
    )
  values["value_range"] = tuple(map(float, value_range))
  record = Preprocess(**values)
  if len(record.mean) != len(record.std) or (record.channel_order == "bgr" and record.channels != 3):
    raise UserError(
      f"{where}preprocess has {len(record.mean)} means, {len(record.std)} standard deviations and the order"
      f" {record.channel_order}; expected as many of both, and bgr for three"
    )
  return record


def value_range_of_run(config: Mapping[str, Any]) -> Any:
  """`data.value_range` in a config.json of train.py, as it stands there; () where it says none."""
  run = config.get("config")
  data = run.get("data") if isinstance(run, Mapping) else None
  return (data.get("value_range") if isinstance(data, Mapping) else None) or ()


def check_counts(fields: Mapping[str, Any], where: str) -> None:
  """Refuses fields that ask for more layers than any network has.

  Raises:
    UserError: a depth, a number of convolutions or a list of rates beyond `MAX_BLOCKS`.
  """
  for key in _COUNTS:
    value = fields.get(key)
    numbers = value if isinstance(value, list | tuple) else [value]
    if len(numbers) > MAX_BLOCKS or any(_is_number(n) and abs(n) > MAX_BLOCKS for n in numbers):
      raise UserError(f"{where}.{key} is {_brief(value)}, expected numbers up to {MAX_BLOCKS}")


def _getter(config: Mapping[str, Any], path: Any, prefix: str = "") -> Callable[..., Any]:
  def get(key: str, check: Callable[[Any], bool], expected: str) -> Any:
    value = config.get(key)
    if value is not None and not check(value):
      raise UserError(f"{path}: {prefix}{key} is {_brief(value)}, expected {expected}")
    return value

  return get


def _brief(value: Any) -> str:
  """A value as JSON writes it, cut short."""
  if isinstance(value, str | bool | int | float | None) and not (type(value) is int and abs(value) >> 64):
    return shown(repr(value))
  if isinstance(value, list | tuple) and len(value) <= 4 and all(map(_is_number, value)):
    return repr(value)
  return f"a {type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def _is_number(value: Any) -> bool:
  plain = isinstance(value, int | float | np.number) and not isinstance(value, bool)
  return plain and abs(value) < 1e30 and math.isfinite(value)


def _is_numbers(value: Any) -> bool:
  if isinstance(value, np.ndarray):
    value = value.tolist()
  return isinstance(value, list | tuple) and all(map(_is_number, value))


def _is_whole_numbers(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(type(n) is int and 0 < n < 1 << 20 for n in value)


def _is_side(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 < value < 1 << 16


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and len(value) < 10_000


def _is_fields(value: Any) -> bool:
  return isinstance(value, Mapping) and all(isinstance(key, str) and len(key) < 100 for key in value)


def _is_texts(value: Any) -> bool:
  return _is_fields(value) and all(map(_is_text, value.values())) and len(value) < 100


def is_names(value: Any) -> bool:
  """Whether it is a list of class names."""
  names = isinstance(value, list | tuple) and len(value) <= _MAX_CLASSES
  return names and all(isinstance(name, str) and len(name) <= 200 for name in value)


def is_palette(value: Any) -> bool:
  """Whether it is a list of RGB colours."""
  rows = isinstance(value, list | tuple) and len(value) <= _MAX_CLASSES
  return rows and all(
    isinstance(row, list | tuple) and len(row) == 3 and all(_is_number(n) and 0 <= n <= 255 for n in row)
    for row in value
  )


def _is_class_count(value: Any) -> bool:
  return type(value) is int and 0 < value <= _MAX_CLASSES


def _is_labels(value: Any) -> bool:
  return _is_texts_of(value) and all(re.fullmatch(r"\d{1,6}", key) for key in value)


def _is_texts_of(value: Any) -> bool:
  return isinstance(value, Mapping) and is_names(list(value.values()))
