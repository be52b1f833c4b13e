"""What a key may hold: an annotation for its kind, a range for its numbers.

An annotation is that of a Linen field or of the table in `schema.py`: `int`, `float | None`,
`Literal["a", "b"]`, `tuple[int, int]`, `tuple[str, ...]`, `tuple[tuple[int, int], ...]`, and unions of them.
"""

import ast
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from jaxseg.errors import UserError

_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PLAIN = (bool, int, float, str, tuple)
_SHOWN = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from `low` to `high`, both included unless `above` or `below` says otherwise; None is open."""

  low: float | int | None = None
  high: float | int | None = None
  above: bool = False  # low itself is not allowed
  below: bool = False  # high itself is not allowed

  def __contains__(self, value: float | int) -> bool:
    if math.isnan(value) or math.isinf(value):
      return False
    low = self.low is None or (value > self.low if self.above else value >= self.low)
    return low and (self.high is None or (value < self.high if self.below else value <= self.high))

  def text(self) -> str:
    """In words, for a message: "above 0, at most 1"."""
    parts = []
    if self.low is not None:
      parts.append(f"{'above' if self.above else 'at least'} {_number(self.low)}")
    if self.high is not None:
      parts.append(f"{'below' if self.below else 'at most'} {_number(self.high)}")
    return ", ".join(parts) or "a finite number"


def _number(value: float | int) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:g}"


ANY = Range()  # any finite number


def nearest(word: str, known: Iterable[str]) -> str:
  """`; did you mean 'x'?` for the closest known word, or `; it has: a, b, c` where none is close."""
  known = sorted(known)
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
  return f"; did you mean {close[0]!r}?" if close else f"; it has: {', '.join(known)}"


def plain_type(annotation: Any) -> type | None:
  """The type that a command line can set: int of `int | None`; None for modules and functions."""
  for option in _options(annotation):
    if typing.get_origin(option) is Literal:
      return type(typing.get_args(option)[0])
    plain = typing.get_origin(option) or option
    if plain in _PLAIN:
      return plain
  return None


def parse(where: str, text: str, annotation: Any, *, like: Any = None) -> Any:
  """The value that `text` stands for on a command line.

  A tuple is `(360, 360)`, `360,360`, `[360, 360]`, or bare words `road,car`.

  Args:
    where: the key, for messages: "config.data.crop_size".
    text: as it was typed.
    annotation: what the key may hold.
    like: the value that it has, shown as an example.

  Raises:
    UserError: text of another kind, or of another length.
  """
  if text == "None" and type(None) in _options(annotation):
    return None
  kind = plain_type(annotation)
  if kind is tuple and text in _choices(annotation):
    return text
  if kind is bool:
    if text.lower() not in _BOOLS:
      raise UserError(f"{where} expects true or false, got {_short(text)}")
    return _BOOLS[text.lower()]
  if kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      article = "an int" if kind is int else "a float"
      raise UserError(f"{where} expects {article}, got {_short(text)}") from None
  if kind is tuple:
    return _conform(where, _items(text), annotation, text, like)
  quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
  return text[1:-1] if quoted else text


def check(where: str, value: Any, annotation: Any, allowed: Range = ANY) -> None:
  """Whether `value` is of the annotation's kind, choices and length, and its numbers are in the range.

  Raises:
    UserError: naming the key, the value and what is allowed.
  """
  if value is None:
    if type(None) not in _options(annotation) and annotation is not Any:
      raise UserError(f"{where} is None; expected {describe(annotation)}")
    return
  if annotation is not Any and not any(_fits(value, option) for option in _options(annotation)):
    raise UserError(f"{where} is {_short(value)}; expected {describe(annotation)}{_close(value, annotation)}")
  for number in _numbers(value):
    if number not in allowed:
      one = "" if number is value else f", which holds {_short(number)}"
      raise UserError(f"{where} is {_short(value)}{one}; expected {allowed.text()}")


def describe(annotation: Any) -> str:
  """An annotation in words: "2 ints", "any number of texts", "one of 'a', 'b'"."""
  return " or ".join(_describe(option) for option in _options(annotation))


def _describe(option: Any) -> str:
  if typing.get_origin(option) is Literal:
    return f"one of {', '.join(map(repr, typing.get_args(option)))}"
  if typing.get_origin(option) is tuple or option is tuple:
    items = typing.get_args(option)
    if not items:
      return "()"
    kind = {int: "int", float: "number", str: "text", bool: "bool"}.get(items[0], "value")
    plural = f"{kind}s"
    if typing.get_origin(items[0]) is Literal:
      plural = f"values, each {_describe(items[0])}"
    if typing.get_origin(items[0]) is tuple:
      kind, plural = f"group of {_describe(items[0])}", f"groups of {_describe(items[0])}"
    if Ellipsis in items:
      return f"any number of {plural}"
    if len(set(items)) > 1:
      return f"({', '.join(_describe(item) for item in items)})"
    return f"{len(items)} {plural if len(items) > 1 else kind}"
  words = {int: "an int", float: "a float", str: "a text", bool: "true or false", type(None): "None"}
  return words.get(option, str(option))


def _options(annotation: Any) -> tuple[Any, ...]:
  union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  return typing.get_args(annotation) if union else (annotation,)


def _fits(value: Any, option: Any) -> bool:
  if option is Any:
    return True
  origin = typing.get_origin(option)
  if origin is Literal:
    return any(value == choice and type(value) is type(choice) for choice in typing.get_args(option))
  if origin is tuple:
    items = typing.get_args(option)
    if not isinstance(value, tuple):
      return False
    if Ellipsis in items:
      return all(_item_fits(item, items[0]) for item in value)
    return len(value) == len(items) and all(map(_item_fits, value, items))
  if option is float:
    return type(value) in (int, float)
  if option in _PLAIN:
    return type(value) is option
  return origin is None and isinstance(option, type) and isinstance(value, option)


def _item_fits(value: Any, annotation: Any) -> bool:
  return any(_fits(value, option) for option in _options(annotation))


def _items(text: str) -> tuple[Any, ...]:
  try:
    value = ast.literal_eval(text) if text else ()
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    text = text.strip()
    # Only a pair around it all: a regular expression may end with a bracket of its own.
    inside = text[1:-1] if (text[:1], text[-1:]) in (("(", ")"), ("[", "]")) else text
    value = [word.strip() for word in inside.split(",") if word.strip()]
  return _as_tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _as_tuple(value: Any) -> Any:
  return tuple(_as_tuple(item) for item in value) if isinstance(value, (tuple, list)) else value


def _conform(where: str, value: tuple, annotation: Any, text: str, like: Any) -> tuple:
  for option in _options(annotation):
    if typing.get_origin(option) is tuple or option is tuple:
      # (2, 4) for one group of two: ("norm", 1.0, 0.0) typed without the outer brackets.
      for candidate in (value, (value,)):
        candidate = _floats(candidate, option)
        if _fits(candidate, option) or option is tuple:
          return candidate
  like = f" like {_short(like)}" if like else ""
  lengths = [
    len(typing.get_args(o))
    for o in _options(annotation)
    if typing.get_origin(o) is tuple and Ellipsis not in typing.get_args(o)
  ]
  wrong_length = lengths and len(value) not in lengths
  what = (
    f"{' or '.join(map(str, lengths))} value{'s' * (lengths != [1])}"
    if wrong_length
    else describe(annotation)
  )
  raise UserError(f"{where} expects {what}{like}, got {_short(text)}")


def _floats(value: Any, option: Any) -> Any:
  """Ints as floats where the annotation says so."""
  if option is float and type(value) is int:
    try:
      return float(value)
    except OverflowError:
      return value
  items = typing.get_args(option)
  if typing.get_origin(option) is tuple and isinstance(value, tuple) and items:
    kinds = [items[0]] * len(value) if Ellipsis in items else items
    return tuple(map(_floats, value, kinds)) if len(kinds) == len(value) else value
  return value


def _numbers(value: Any) -> Iterable[float | int]:
  if isinstance(value, tuple):
    for item in value:
      yield from _numbers(item)
  elif type(value) in (int, float):
    yield value


def _choices(annotation: Any) -> list[str]:
  literals = [option for option in _options(annotation) if typing.get_origin(option) is Literal]
  return [str(choice) for option in literals for choice in typing.get_args(option)]


def _close(value: Any, annotation: Any) -> str:
  choices = _choices(annotation)
  hint = nearest(str(value), choices) if choices else ""
  return hint if "did you mean" in hint else ""


def _short(value: Any) -> str:
  try:
    text = repr(value)
  except ValueError:  # an int of more than 4,300 digits
    return "a number of thousands of digits"
  return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
