"""The record of a run, `WORKDIR/config.json`: everything that rebuilds the model and reads its output.

`jaxseg.from_pretrained(workdir)`, `eval.py` and a resuming `train.py` read it.
"""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

import jaxseg
from jaxseg import bucket
from jaxseg.errors import UserError

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
_MAX_BYTES = 64 << 20
_MAX_DEPTH = 32  # objects and lists in each other
# Key → what it has to be. What `from_pretrained` needs beyond that it checks itself.
_NUMBER = (int, float)
_SCHEMA: dict[str, Any] = {
  "config": {"model": {"arch": str}},
  "model": {"arch": str, "num_classes": int},
  "classes": [str],
  "palette": [[int]],
  "preprocess": {"mean": [_NUMBER], "std": [_NUMBER], "channel_order": str},
}


def make_record(
  config: Any, *, num_classes: int, classes: Sequence[str], palette: np.ndarray
) -> dict[str, Any]:
  """What `config.json` holds, as plain JSON values."""
  from jaxseg.config.fields import model_fields
  from jaxseg.config.files import resolved

  values = {
    "jaxseg_version": jaxseg.__version__,
    "config": resolved(config),
    "model": {
      "arch": config.model.arch,
      "num_classes": num_classes,
      "scales": tuple(config.model.get("scales", ())),  # of segmentation models
      **({"multi_label": True} if config.data.get("multi_label", False) else {}),
      **model_fields(config),
    },
    "classes": list(classes),
    "palette": np.asarray(palette, np.uint8).tolist(),
    "preprocess": config.preprocess.to_dict(),
  }
  return json.loads(json.dumps(values))


def write(workdir: epath.PathLike, values: Mapping[str, Any]) -> None:
  """Writes `config.json` beside the old one, and renames: a reader never sees half of it.

  Raises:
    OSError: the folder cannot be written.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  epath.Path(workdir).mkdir(parents=True, exist_ok=True)
  part = path.with_name(f"{CONFIG_FILE}.{uuid.uuid4().hex}.part")
  part.write_text(json.dumps(values, indent=2) + "\n")
  part.replace(path)


def is_workdir(path: epath.PathLike) -> bool:
  """Whether `path` is a folder that train.py wrote, rather than weights.

  Raises:
    UserError: it has checkpoints beside a `config.json` that cannot be read.
  """
  folder = epath.Path(path)
  if not ((folder / CHECKPOINTS).is_dir() and (folder / CONFIG_FILE).exists()):
    return False
  return "config" in load_json(folder / CONFIG_FILE)


def read(workdir: epath.PathLike) -> dict[str, Any]:
  """The values of a workdir's `config.json`.

  Raises:
    UserError: there is none, or it is not one of ours.
  """
  bucket.reach(workdir)
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    raise UserError(f"{str(workdir)!r} is no workdir of train.py: it has no {CONFIG_FILE}")
  return read_file(path)


def read_file(path: epath.PathLike) -> dict[str, Any]:
  """`read`, of the file itself."""
  return load_json(path, _SCHEMA, what=f"a {CONFIG_FILE} that train.py wrote")


def read_config(workdir: epath.PathLike) -> Any:
  """The resolved config (a ConfigDict) of a workdir's run, with the class count that it settled on.

  Raises:
    UserError: as `read`, or its values are none of a config.
  """
  return config_of(read(workdir), epath.Path(workdir) / CONFIG_FILE)


def config_of(values: Mapping[str, Any], path: epath.PathLike) -> Any:
  """The config in the values of a `config.json` at `path`.

  Raises:
    UserError: a key is missing or its value cannot be.
  """
  from jaxseg.config.files import from_resolved
  from jaxseg.config.keys import check_values

  try:
    config = from_resolved(values["config"])
    config.model.num_classes = int(values["model"]["num_classes"])
    check_values(config)
  except UserError as error:
    raise UserError(f"{str(path)!r}: {error}") from None
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f"{str(path)!r} does not hold a config that train.py wrote"
      f" ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]!r})"
    ) from None
  return config


def load_json(path: epath.PathLike, schema: Any = None, *, what: str = "valid JSON") -> Any:
  """A JSON file's values, checked against a schema.

  Args:
    path: of the file.
    schema: a type or a tuple of types, {key: schema} for an object with at least these keys ("key?" for one
      that may be missing or null), [schema] for a list; None is any object.
    what: it should be, for the message.

  Raises:
    UserError: it cannot be read, is too large, not JSON, or another shape.
  """
  try:
    file = epath.Path(path)
    if file.stat().length > _MAX_BYTES:
      raise UserError(f"{str(path)!r} is larger than {_MAX_BYTES >> 20} MiB; expected {what}")
    text = file.read_bytes().decode("utf-8")
    values = json.loads(text)
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be read ({error.strerror or error})") from None
  except (ValueError, RecursionError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{str(path)!r} is not {what}: it is not JSON") from None
  wrong = _too_deep(values) or _mismatch(values, {} if schema is None else schema, "")
  if wrong:
    raise UserError(f"{str(path)!r} is not {what}: {wrong}")
  return values


def _too_deep(value: Any) -> str:
  """Says so where lists and objects lie in each other as in no file of ours; "" where they do not."""
  level = [value]
  for _ in range(_MAX_DEPTH):
    level = [
      inner
      for outer in level
      if isinstance(outer, dict | list)
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
    if not level:
      return ""
  return f"it has more than {_MAX_DEPTH} levels"


def _mismatch(value: Any, schema: Any, where: str) -> str:
  """What is wrong with `value`; "" where nothing is."""
  name = where or "it"
  if isinstance(schema, dict):
    if not isinstance(value, dict):
      return f"{name} is no object"
    for key, inner in schema.items():
      if key.endswith("?"):
        key = key[:-1]
        if value.get(key) is None:
          continue
      if key not in value:
        return f"{name} has no {key!r}"
      if wrong := _mismatch(value[key], inner, f"{where}.{key}".lstrip(".")):
        return wrong
    return ""
  if isinstance(schema, list):
    if not isinstance(value, list):
      return f"{name} is no list"
    return next((w for i, v in enumerate(value) if (w := _mismatch(v, schema[0], f"{where}[{i}]"))), "")
  kinds = schema if isinstance(schema, tuple) else (schema,)
  if type(value) not in kinds:
    return f"{name} is no {' or '.join(kind.__name__ for kind in kinds)}"
  if type(value) is float and not math.isfinite(value):
    return f"{name} is {value}"
  return f"{name} is beyond 64 bits" if type(value) is int and abs(value) >> 63 else ""
