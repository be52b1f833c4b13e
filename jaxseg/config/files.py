"""Config files: found by path or by name, run, changed from the command line, written as JSON and read back.

A config file has `get_config(arg)`, and where values hang on what only the command line tells (a
folder, a file of weights) also `finish(config, given)`, which sees the config with every override
applied and the dotted keys that were typed. The `config.json` of a workdir is a config file too.
"""

import contextlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

import jaxseg
from jaxseg.config import overrides as overrides_lib
from jaxseg.config import record, schema
from jaxseg.config.fields import follow, model_config
from jaxseg.config.keys import name_of
from jaxseg.config.smoke import shrink
from jaxseg.config.values import describe, nearest
from jaxseg.errors import UserError


def load(
  spec: str,
  *,
  overrides: Sequence[tuple[str, str]] = (),
  ready: Callable[[ml_collections.ConfigDict], None] | None = None,
) -> ml_collections.ConfigDict:
  """The config that `spec` names, with `overrides` (dotted key, text) applied.

  `smoke` among the arguments shrinks any config (`smoke.py`); the file sees the others.

  Args:
    spec: `path/to/file.py:arg,arg`; the name of a file in the current folder's `configs/` or among the
      installed ones, `segnext_ade20k:tiny`; or the `config.json` of a workdir, which is run again.
    overrides: in the order in which they are applied.
    ready: called with the values as they were typed, before the file's `finish` looks into folders and
      weights: reading weights can start JAX's backend, before which the processes of a job have to be joined.

  Raises:
    UserError: no such file or argument, no config, unknown key, wrong type.
  """
  if spec.endswith(".json"):
    config = record.config_of(record.read_file(spec), spec)
    change(config, overrides)
    if ready is not None:
      ready(config)
    return config
  path, args = find(spec)
  with _importable(path):
    module = _run(path)
    config = module.get_config(",".join(word for word in args if word != "smoke"))
    if not isinstance(config, ml_collections.ConfigDict):
      raise UserError(
        f"get_config of {str(path)!r} returns {type(config).__name__}; expected a ml_collections.ConfigDict,"
        " such as configs/common.py's base()"
      )
    for name in ("model", "data", "optimizer", "loss", "eval"):
      if name not in config:
        raise UserError(
          f"the config of {str(path)!r} has no {name!r}; start it from configs/common.py's base()"
        )
    if "smoke" in args:
      shrink(config)
    config.lock()
    change(config, overrides)
    if ready is not None:
      ready(config)
    if hasattr(module, "finish"):
      module.finish(config, {key for key, _ in overrides})
  return config


def change(config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
  """`overrides.apply`, the model's first; what hangs on the model follows (see `fields.follow`).

  Raises:
    UserError: unknown key, wrong type.
  """
  model = [change for change in overrides if change[0].startswith("model.")]
  before = config.model.encoder.get("output_stride")
  overrides_lib.apply(config, model)
  follow(config, before=None if "model.decoder.rates" in dict(model) else before)
  if "loss.weights.aux_logits" in dict(overrides) and config.model.get("auxiliary") is False:
    raise UserError(
      "config.loss.weights.aux_logits weighs the auxiliary head, which is off;"
      " set --config.model.auxiliary=true"
    )
  overrides_lib.apply(config, [change for change in overrides if change not in model])


def find(spec: str) -> tuple[pathlib.Path, list[str]]:
  """The file that `path/to/file.py:arg,arg` or `name:arg,arg` means, and its arguments.

  Where there is no such file, one of the words of its name may be an argument: `segnext_tiny_ade20k` is
  `segnext_ade20k:tiny`.

  Raises:
    UserError: no such file, or a folder.
  """
  name, _, arg = spec.partition(":")
  args = [word.strip() for word in arg.split(",") if word.strip()]
  if not name:
    raise UserError("--config is empty; give a config file, such as segnext_ade20k:tiny")
  path = pathlib.Path(name)
  if path.is_dir():
    inside = path / record.CONFIG_FILE
    hint = f"; give {str(inside)!r} to run it again" if inside.is_file() else "; give a file"
    raise UserError(f"--config {name!r} is a folder{hint}")
  bare = path.parent == pathlib.Path() and path.suffix != ".py"
  folders = [pathlib.Path("configs"), installed()] if bare else [path.parent]
  file = path.name if path.suffix == ".py" else f"{path.name}.py"
  if path.is_file():
    return path, args
  for folder in folders:
    if bare and (folder / file).is_file():
      return folder / file, args
  for folder in folders:
    if (split := _split(folder / file)) is not None:
      return split[0], [split[1], *args]
  # Files of helpers, such as configs/common.py, are no choice.
  files = [p for f in folders if f.is_dir() for p in f.glob("*.py") if "def get_config" in p.read_text()]
  known = [str(p if not bare else p.stem) for p in files]
  raise UserError(f"there is no config file {name!r}{nearest(name, set(known)) if known else ''}")


def installed() -> pathlib.Path:
  """The folder of the configs that came with jaxseg: in the package of a wheel, beside it in a checkout."""
  package = pathlib.Path(jaxseg.__file__).resolve().parent
  inside = package / "configs"
  return inside if inside.is_dir() else package.parent / "configs"


def _split(path: pathlib.Path) -> tuple[pathlib.Path, str] | None:
  words = path.stem.split("_")
  for i, word in enumerate(words):
    shorter = path.with_name("_".join(words[:i] + words[i + 1 :]) + path.suffix)
    if word and shorter.is_file():
      return shorter, word
  return None


def _run(path: pathlib.Path) -> types.ModuleType:
  spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
  if spec is None:
    raise UserError(f"{str(path)!r} is no Python file; a config is a .py file or a workdir's config.json")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise UserError(f"{str(path)!r} is no Python: {error.msg} in line {error.lineno}") from None
  if not hasattr(module, "get_config"):
    raise UserError(f"{str(path)!r} is no config: it has no function get_config(arg)")
  return module


@contextlib.contextmanager
def _importable(path: pathlib.Path) -> Iterator[None]:
  """While a config runs, `from configs import common` finds the config's own folder, then the installed one.

  Whatever else is called `configs` in this process is back afterwards.
  """
  own = path.resolve().parent
  folders = [str(own)] if own.name == "configs" else []
  package = types.ModuleType("configs")
  package.__path__ = list(dict.fromkeys([*folders, str(installed())]))
  before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_configs(name)}
  sys.modules["configs"] = package
  sys.path.insert(0, str(own.parent))
  try:
    yield
  finally:
    sys.path.remove(str(own.parent))
    for name in [name for name in sys.modules if _is_configs(name)]:
      del sys.modules[name]
    sys.modules.update(before)


def _is_configs(name: str) -> bool:
  return name == "configs" or name.startswith("configs.")


def resolved(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as plain values, references followed; what `config.json` holds."""
  return config.copy_and_resolve_references().to_dict()


def from_resolved(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The config that `resolved` wrote, read back from JSON: lists are tuples again, None has its type.

  Raises:
    UserError: a key is missing, or is a group in place of a value or the other way round.
  """
  values = _tuples(dict(values))
  model = values.pop("model")
  config = ml_collections.ConfigDict(values)
  parts = {p: model.pop(p) for p in ("encoder", "decoder", "aux_decoder") if p in model}
  config.model = model_config(model.pop("arch"), num_classes=model.pop("num_classes"), **parts)
  config.model.update(model)
  _check_whole(config)
  if "align_corners" in config.get("loss", {}) and config.loss.align_corners is None:
    config.loss.align_corners = config_dict.placeholder(bool)  # JSON's null has no type to check values by
  config.lock()
  return config


def _check_whole(config: ml_collections.ConfigDict) -> None:
  """Fills in what an earlier version did not write; raises UserError for any other key that is not there."""
  task = name_of(config)
  for name in schema.TASK_KEYS.get(task, ()):
    *groups, last = name.split(".")
    node = config
    for number, group in enumerate(groups, 1):
      if group not in node and name in schema.LATER:
        node[group] = ml_collections.ConfigDict()
      node = node.get(group)
      if not isinstance(node, ml_collections.ConfigDict):
        raise UserError(f"config.{'.'.join(groups[:number])} is no group of keys")
    if last not in node and name in schema.LATER:
      node[last] = schema.LATER[name]
    if isinstance(node.get(last), ml_collections.ConfigDict):
      expected = describe(schema.key_of(name, task).annotation)
      raise UserError(f"config.{name} is a group of keys; expected {expected}")
    if last not in node and name not in schema.OPTIONAL:
      raise UserError(f"config has no key {name}")


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
