"""What a person reads on a terminal: lines, names of others made printable, and how a program ends."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from jaxseg.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130


def print_line(text: str, *, error: bool = False) -> None:
  """Prints a line at once, on stderr for an `error`. Failing to print ends nothing.

  A pipe whose reader has left (`| head`), a full disk or a closed terminal: what follows is printed nowhere.
  """
  stream = sys.stderr if error else sys.stdout
  if stream is None:
    return
  try:
    print(text, file=stream, flush=True)
  except OSError:
    # The descriptor, not the object: the interpreter flushes what is left at its end, and would fail again.
    with contextlib.suppress(OSError, ValueError):
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, stream.fileno())
      os.close(nowhere)
  except ValueError:  # closed, or letters that the terminal has not
    pass


def printable(text: object) -> str:
  r"""A name that somebody else chose, for a terminal or a report: \x1b and \n for what is not printable."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def markdown(text: object) -> str:
  """`printable` for a cell of a Markdown table: pipes, angle brackets and the like stand for themselves."""
  marks = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
  text = "".join(marks.get(c, c) for c in printable(text))
  return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in text)


@contextlib.contextmanager
def exit_on_user_error(program: str) -> Iterator[None]:
  """Ends a program of one process: a `UserError` as one line and exit code 2, Ctrl-C with 130.

  Anything else is a bug, and keeps its traceback and exit code 1.
  """
  try:
    yield
  except UserError as error:
    print_line(f"{program}: {error}", error=True)
    sys.exit(BAD_INPUT)
  except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not end in a traceback
    print_line(f"\n{program}: stopped", error=True)
    sys.exit(INTERRUPTED)
