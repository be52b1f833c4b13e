"""Reading what strangers wrote: text of a file in messages, and one wrapper around every reader."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from jaxseg.errors import UserError

# No published network has a stage of half as many blocks; each costs time before anything is compared.
MAX_BLOCKS = 128


def shown(text: Any, limit: int = 80) -> str:
  """Text out of a file as it may stand in a message: short, on one line, without control characters."""
  text = text if isinstance(text, str) else type(text).__name__
  clean = text[: limit + 1].encode("unicode_escape").decode("ascii")
  return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def some(names: Iterable[str], limit: int = 6) -> str:
  """The first names, shortened, and how many more there are."""
  names = list(names)
  text = ", ".join(map(shown, names[:limit]))
  return text + (f" and {len(names) - limit} more" if len(names) > limit else "")


@contextlib.contextmanager
def reading(path: pathlib.Path | str) -> Iterator[None]:
  """Turns any exception that a damaged or hostile file can cause into one sentence that names the file.

  Raises:
    UserError: instead of whatever was raised inside; its cause is kept for whoever debugs a reader.
  """
  try:
    yield
  except UserError:
    raise
  except (Exception, MemoryError) as error:
    words = f"{type(error).__name__}: {shown(str(error), 120)}" if str(error) else type(error).__name__
    raise UserError(f"{path} is cut short or damaged ({words}); download it again") from error
