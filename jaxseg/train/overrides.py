"""`--config.a.b=value` on the command line → a changed config, or one sentence that says why not.

`ml_collections.config_flags` does the same with tracebacks, accepts `--config.data.crop_size=769`
as `(769,)`, and cannot name the key that was meant; this is why the parsing is here.
"""

import ast
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections

from jaxseg.errors import UserError

PREFIX = "--config."
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

# Tuples that hold as many values as the experiment has classes, groups, ...; every other tuple keeps
# the length that it has in the config, so that a forgotten second value is noticed.
FREE_LENGTH = (
  "classes", "label_map", "value_range", "columns", "class_weights", "groups", "boundaries", "init_keep",
  "palette",  "resize", "frozen", "factors", "multi_grid", "rates", "scales", "profile_steps",
  "branches", "stages", "side_stages",
)  # fmt: skip


def split(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """Separates `--config.key=value`, `--config.key value` and bare `--config.flag` from the rest.

  Returns:
    [(dotted key, text)], and the arguments that are not overrides, both in order.
  """
  overrides, rest, queue = [], [], list(argv)
  while queue:
    word = queue.pop(0)
    if not word.startswith(PREFIX):
      rest.append(word)
    elif "=" in word:
      key, text = word.removeprefix(PREFIX).split("=", 1)
      overrides.append((key, text))
    else:
      # "--config.x -1" is a value, "--config.x --workdir=..." is not.
      has_value = queue and not queue[0].startswith("--")
      overrides.append((word.removeprefix(PREFIX), queue.pop(0) if has_value else "true"))
  return overrides, rest


def apply(config: ml_collections.ConfigDict, overrides: Iterable[tuple[str, str]]) -> None:
  """Sets each `(dotted key, text)` in `config`, in order, in place.

  Raises:
    UserError: unknown key (with the nearest one), or text that is not of the key's type.
  """
  for key, text in overrides:
    node, name = _find(config, key)
    node[name] = _parse(node, key, name, text)


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
  """The dotted names of every value of `config`."""
  names = []
  for key in config:
    nested = isinstance(config[key], ml_collections.ConfigDict)
    names += leaves(config[key], f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
  return names


def nearest(word: str, known: Iterable[str]) -> str:
  """`; did you mean 'x'?` for the closest known word, or `; it has: a, b, c` where none is close."""
  known = sorted(known)
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
  return f"; did you mean {close[0]!r}?" if close else f"; it has: {', '.join(known)}"


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


def _parse(node: ml_collections.ConfigDict, key: str, name: str, text: str) -> Any:
  kind, current = node.get_type(name), node[name]
  where = f"config.{key}"
  if isinstance(current, ml_collections.ConfigDict):
    raise UserError(f"{where} is a group of keys; set one of them: {', '.join(leaves(current, key + '.'))}")
  if text == "None" and current is None:
    return None
  if kind is bool:
    if text.lower() not in _BOOLS:
      raise UserError(f"{where} expects true or false, got {text!r}")
    return _BOOLS[text.lower()]
  if kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      article = "an int" if kind is int else "a float"
      raise UserError(f"{where} expects {article}, got {text!r}") from None
  if kind is tuple:
    return _parse_tuple(where, name, text, current or ())
  return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _parse_tuple(where: str, name: str, text: str, current: tuple) -> tuple:
  """`(360, 360)`, `360,360`, `[360, 360]` or bare words `road,car`, of the kinds that `current` holds."""
  try:
    value = ast.literal_eval(text) if text else ()
  except (ValueError, SyntaxError):
    text = text.strip()
    # Only a pair around it all: a regular expression may end with a bracket of its own.
    inside = text[1:-1] if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")) else text
    value = [word.strip() for word in inside.split(",") if word.strip()]
  value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
  value = tuple(tuple(item) if isinstance(item, list) else item for item in value)
  if not current:
    return value
  if name not in FREE_LENGTH and len(value) != len(current):
    raise UserError(f"{where} expects {len(current)} values like {current!r}, got {text!r}")
  kinds = {type(item) for item in current}
  if kinds == {float}:
    value = tuple(float(item) if type(item) is int else item for item in value)
  if len(kinds) == 1 and any(type(item) not in kinds for item in value):
    raise UserError(f"{where} expects {next(iter(kinds)).__name__}s like {current!r}, got {text!r}")
  return value
