"""`--config.a.b=value` on the command line → a changed config, or one sentence that says why not.

`ml_collections.config_flags` does the same with tracebacks, accepts `--config.data.crop_size=769`
as `(769,)`, and cannot name the key that was meant; this is why the parsing is here. The words of the
command line are separated in `jaxseg.cli`.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import ml_collections

from jaxseg.config import values
from jaxseg.config.keys import key_of, leaves
from jaxseg.config.values import nearest
from jaxseg.errors import UserError


def apply(config: ml_collections.ConfigDict, overrides: Iterable[tuple[str, str]]) -> None:
  """Sets each `(dotted key, text)` in `config`, in order, in place.

  Raises:
    UserError: unknown key (with the nearest one), or text that is not of the key's type.
  """
  for key, text in overrides:
    node, name = _find(config, key)
    value = _parse(config, key, node[name], text)
    try:
      if isinstance(node[name], tuple) and isinstance(value, str):  # a word in place of numbers
        with node.ignore_type():
          node[name] = value
      else:
        node[name] = value
    except (TypeError, ValueError):  # a value whose type the config file fixed otherwise than the table
      raise UserError(f"config.{key} expects {values.describe(node.get_type(name))}, got {text!r}") from None


def _find(config: ml_collections.ConfigDict, key: str) -> tuple[ml_collections.ConfigDict, str]:
  """The group that holds `key`, and the key's last name."""
  node, seen = config, "config"
  *groups, name = key.split(".")
  for group in groups:
    _check_key(config, node, seen, group, name)
    seen += f".{group}"
    if not isinstance(node[group], ml_collections.ConfigDict):
      raise UserError(f"{seen} is the value {node[group]!r} and has no key {name!r}; set --{seen}=... itself")
    node = node[group]
  _check_key(config, node, seen, name, name)
  return node, name


def _check_key(
  config: ml_collections.ConfigDict, node: ml_collections.ConfigDict, seen: str, word: str, name: str
) -> None:
  if word in node:
    return
  close = difflib.get_close_matches(word, list(node), n=1, cutoff=0.6)
  # The right name in the wrong place is the commonest slip: config.learning_rate.
  elsewhere = [leaf for leaf in leaves(config) if leaf.rsplit(".", 1)[-1] == name]
  if elsewhere and not close:
    raise UserError(f"{seen} has no key {word!r}; did you mean config.{elsewhere[0]}?")
  raise UserError(f"{seen} has no key {word!r}{nearest(word, node)}")


def _parse(config: ml_collections.ConfigDict, key: str, current: Any, text: str) -> Any:
  where = f"config.{key}"
  if isinstance(current, ml_collections.ConfigDict):
    raise UserError(f"{where} is a group of keys; set one of them: {', '.join(leaves(current, key + '.'))}")
  return values.parse(where, text, key_of(config, key).annotation, like=current)
