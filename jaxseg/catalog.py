"""Names → modules, with errors that help.

A catalog is a plain `dict[str, functools.partial]`: the variant's name, and the
Linen class with the fields that make the variant. Nothing registers itself on
import; each room's `__init__` lists its entries.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

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
    UserError: unknown variant, or a field the module does not have.
  """
  entry = lookup(catalog, name, kind=kind)
  overrides = dict(overrides or {})
  known = fields(entry)
  for key in overrides:
    if key not in known:
      raise UserError(f"{kind} {name!r} has no field {key!r}; {suggestion(key, known)}")
  return entry(**overrides)
