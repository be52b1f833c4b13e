"""Names → modules, with errors that help.

A catalog is a plain `dict[str, functools.partial]`: the variant's name, and the
Linen class with the fields that make the variant. Nothing registers itself on
import; each room's `__init__` lists its entries.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import flax.linen as nn

from jaxseg.errors import UserError

Catalog = Mapping[str, partial]

# Linen's own dataclass fields: setting `name` would rename the parameter subtree.
_LINEN_FIELDS = ("parent", "name")


def suggestion(word: str, known: Iterable[str]) -> str:
  """What a user who typed `word` may have meant: the closest known word first, then all of them."""
  known = sorted(known)
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def lookup(catalog: Catalog, name: str, *, kind: str) -> partial:
  """The entry called `name`.

  Raises:
    UserError: no such entry; the message has the nearest and all known names.
  """
  if name not in catalog:
    raise UserError(f"there is no {kind} called {name!r}; {suggestion(name, catalog)}")
  return catalog[name]


class CheckedModule(nn.Module):
  """A Linen module that refuses a field's value when it is made, as `check_value` does by the annotation."""

  def __post_init__(self):
    for name, field in fields(type(self)).items():
      check_value(f"{type(self).__name__}.{name}", getattr(self, name), field.type)
    super().__post_init__()


def check_value(what: str, value: Any, annotation: Any) -> None:
  """Refuses a choice that a `Literal` does not have, and a tuple of another length or with such a choice.

  What else an annotation says is left to Python.

  Args:
    what: how the message names the value.
    value: see `what`.
    annotation: of the field; a union needs one member that the value fits.

  Raises:
    UserError: the message has what is expected, the nearest first.
  """
  union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  options = typing.get_args(annotation) if union else (annotation,)
  refusals = [_refusal(value, option) for option in options]
  if None not in refusals:
    raise UserError(f"{what} is {value!r}; {'; or '.join(dict.fromkeys(refusals))}")


def _refusal(value: Any, option: Any) -> str | None:
  """What is expected instead of a value; None where it fits or nothing is known."""
  origin, arguments = typing.get_origin(option), typing.get_args(option)
  if option in (None, type(None)):
    return None if value is None else "None is possible"
  if origin is Literal:
    if any(value == choice and type(value) is type(choice) for choice in arguments):
      return None
    return suggestion(str(value), map(str, arguments))
  if origin is not tuple:
    return None
  if not isinstance(value, (tuple, list)):
    return f"expected a tuple such as {(1,) * len(arguments) if Ellipsis not in arguments else (1, 2)}"
  if Ellipsis not in arguments and len(value) != len(arguments):
    return f"expected {len(arguments)} values and not {len(value)}"
  items = arguments[:1] * len(value) if Ellipsis in arguments else arguments
  return next((r for r in map(_refusal, value, items) if r is not None), None)


def fields(entry: partial | type[nn.Module]) -> dict[str, dataclasses.Field]:
  """The dataclass fields a user may set on a variant, in declaration order."""
  module = entry.func if isinstance(entry, partial) else entry
  return {f.name: f for f in dataclasses.fields(module) if f.name not in _LINEN_FIELDS}


def defaults(entry: partial | type[nn.Module]) -> dict[str, Any]:
  """Field → value of a variant; a field that must be given is `dataclasses.MISSING`."""
  values = {name: f.default for name, f in fields(entry).items()}
  return values | (dict(entry.keywords) if isinstance(entry, partial) else {})


def build(catalog: Catalog, name: str, overrides: Mapping[str, Any] | None = None, *, kind: str) -> nn.Module:
  """The module of variant `name` with `overrides` for its fields.

  Raises:
    UserError: unknown variant, a field that the module does not have, or a value against its annotation.
  """
  entry = lookup(catalog, name, kind=kind)
  overrides = dict(overrides or {})
  known = fields(entry)
  for key in overrides:
    if key not in known:
      raise UserError(f"{kind} {name!r} has no field {key!r}; {suggestion(key, known)}")
    check_value(f"{kind} {name!r}: {key}", overrides[key], known[key].type)
  return entry(**overrides)
