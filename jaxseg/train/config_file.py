"""Finds a config's file and runs it.

A config file has `get_config(arg)`, and where values hang on what only the command line tells (a
folder, a file of weights) also `finish(config, given)`, which sees the config with every override
applied and the dotted keys that were typed.
"""

import contextlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Iterator

from jaxseg.errors import UserError
from jaxseg.train import overrides


def read(spec: str) -> tuple[types.ModuleType, list[str]]:
  """The module that `path/to/file.py:arg,arg` names, and its arguments.

  Where there is no such file, one of the words of its name may be an argument: `segnext_tiny_ade20k.py` is
  `segnext_ade20k.py:tiny`.

  Raises:
    UserError: no such file, or one without `get_config`.
  """
  name, _, arg = spec.partition(":")
  args = [word.strip() for word in arg.split(",") if word.strip()]
  path = pathlib.Path(name)
  if not path.is_file():
    path, word = _split(path)
    args.insert(0, word)
  return _run(path), args


def _split(path: pathlib.Path) -> tuple[pathlib.Path, str]:
  words = path.stem.split("_")
  for i, word in enumerate(words):
    shorter = path.with_name("_".join(words[:i] + words[i + 1 :]) + path.suffix)
    if word and shorter.is_file():
      return shorter, word
  here = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
  raise UserError(
    f"there is no config file {str(path)!r}{overrides.nearest(str(path), here) if here else ''}"
  )


def _run(path: pathlib.Path) -> types.ModuleType:
  # A name below `configs`, so that an error of its own counts as ours (runtime.sentences).
  spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  with _importable(path.resolve().parent.parent):
    spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise UserError(f"{str(path)!r} is no config: it has no function get_config(arg)")
  return module


@contextlib.contextmanager
def _importable(folder: pathlib.Path) -> Iterator[None]:
  """`from configs import common` works from any directory."""
  sys.path.insert(0, str(folder))
  try:
    yield
  finally:
    sys.path.remove(str(folder))
