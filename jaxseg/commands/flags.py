"""The words of a command line: flags of a command, and `--config.key=value`."""

import argparse
from collections.abc import Sequence

from jaxseg.config.values import nearest
from jaxseg.errors import UserError, printable

PREFIX = "--config."
LEAST_SIDE = 32  # pixels that every model takes
_MOST_SIDE = 65_536


class Parser(argparse.ArgumentParser):
  """Flags of a command; what cannot be read is a `UserError`, without the usage in front of it."""

  def error(self, message: str) -> None:
    raise UserError(f"{message}; {self.prog} --help shows what it takes")


def make_parser(program: str, about: str | None) -> Parser:
  """A parser that shows `about` as it is, and takes no shortened flags."""
  formatter = argparse.RawDescriptionHelpFormatter
  return Parser(prog=program, description=about, formatter_class=formatter, allow_abbrev=False)


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


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
  """The flags of a command.

  Raises:
    UserError: a flag that it does not have (with the nearest), a value it cannot read, an empty folder.
  """
  flags, unknown = parser.parse_known_args(argv)
  if unknown:
    flag = unknown[0].split("=", 1)[0]
    # Not of `vars(flags)`, which names arguments by position, too.
    known = [word for word in parser._option_string_actions if word.startswith("--") and word != "--help"]
    raise UserError(f"there is no flag {flag}{nearest(flag, known)}")
  for name in ("workdir", "source", "output"):
    if getattr(flags, name, None) == "":
      raise UserError(f"--{name} is empty; give a folder, or leave it out")
  return flags


def parse_size(text: str, flag: str) -> tuple[int, int]:
  """(rows, columns) of a text such as 512x1024.

  Raises:
    UserError: another form, or a side that no model takes.
  """
  sides = text.lower().split("x")
  if len(sides) != 2 or not all(side.isdigit() and LEAST_SIDE <= int(side) <= _MOST_SIDE for side in sides):
    raise UserError(
      f"{flag} is {printable(text)!r}; expected HxW of {LEAST_SIDE} to {_MOST_SIDE:,} pixels, such as 512x512"
    )
  return int(sides[0]), int(sides[1])


def parse_numbers(
  text: str, flag: str, *, low: int | float, high: int | float, whole: bool = False
) -> tuple[int | float, ...]:
  """The numbers of a text such as 0.75,1,1.25.

  Raises:
    UserError: no numbers, one beyond `low` to `high`, or one twice.
  """
  try:
    numbers = tuple((int if whole else float)(word) for word in text.split(","))
  except ValueError:
    numbers = ()
  if not numbers or not all(low <= number <= high for number in numbers):
    kind = "whole numbers" if whole else "numbers"
    raise UserError(
      f"{flag} is {printable(text)!r}; expected {kind} of {low:g} to {high:g} with commas between them"
    )
  if len(set(numbers)) < len(numbers):
    raise UserError(f"{flag} is {printable(text)!r}, in which a number occurs twice; give each once")
  return numbers
