"""What a program prints, and with which code it ends. Standard library only: it is loaded first."""

import contextlib
import datetime
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from jaxseg.errors import UserError, printable

# Exit codes. Schedulers restart on every code but 0 and 2.
FAILED = 1  # a bug, a lost host, a hung step
BAD_INPUT = 2  # a UserError, a loss that is not finite: the same command would fail again
PREEMPTED = 75  # EX_TEMPFAIL: told to go by SIGTERM, and saved
INTERRUPTED = 130  # Ctrl-C

_copies: list[Any] = []  # open files that get every line, see `copied_to`


def print_line(text: str, *, error: bool = False) -> None:
  """Prints a line at once, on stderr for an `error`. Failing to print must not abort training.

  After a broken pipe (`| head`), a full disk or a closed terminal, what follows is printed nowhere. Whatever
  names are in it, no control character but the line's end reaches the terminal.
  """
  text = "\n".join(map(printable, text.split("\n")))
  write_copies(text)
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


def write_copies(text: str) -> None:
  """Writes a line with its time to every file of `copied_to`, and not to the terminal."""
  stamp = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
  for file in _copies:
    with contextlib.suppress(OSError, ValueError):
      file.write("".join(f"{stamp}  {line}\n" for line in text.splitlines()))
      file.flush()


@contextlib.contextmanager
def copied_to(path: Any) -> Iterator[None]:
  """Appends every line that `print_line` prints in this context to a local file, with the time.

  An error that leaves the context is written there as well. A file that cannot be opened is no reason to
  stop; a bucket cannot append, and keeps no copy.
  """
  if "://" in str(path):
    yield
    return
  try:
    file = pathlib.Path(path).open("a", encoding="utf-8", errors="replace")
  except OSError:
    yield
    return
  _copies.append(file)
  try:
    yield
  except BaseException as error:
    write_copies(f"{type(error).__name__}: {error}")
    raise
  finally:
    _copies.remove(file)
    with contextlib.suppress(OSError):  # lines that a full disk has not taken
      file.close()


def exit_at_interrupt(program: str) -> None:
  """Makes Ctrl-C end this process with one line and exit code 130, at any moment and also twice.

  Saves are atomic, so exiting at once loses nothing but the steps since the last one. For programs only; call
  it before heavy imports. Not on the main thread it does nothing.
  """

  def leave(*_: Any) -> None:
    # Past Python's buffers, whose locks the interrupted code may hold.
    with contextlib.suppress(OSError):
      os.write(2, f"\n{program}: stopped; the same command goes on from the last checkpoint\n".encode())
    os._exit(INTERRUPTED)

  with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, leave)


def markdown(text: object) -> str:
  """`printable` for a cell of a Markdown table: pipes, angle brackets and the like stand for themselves."""
  marks = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
  text = "".join(marks.get(c, c) for c in printable(text))
  return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in text)


@contextlib.contextmanager
def exit_on_user_error(program: str) -> Iterator[None]:
  """Ends a program of one process: a `UserError` as one line and exit code 2, Ctrl-C with 130.

  Anything else is a bug, and keeps its traceback and exit code 1. `train.distributed` has the same for
  programs of several processes.
  """
  before = signal.getsignal(signal.SIGINT)
  exit_at_interrupt(program)
  try:
    yield
  except UserError as error:
    print_line(f"{program}: {error}", error=True)
    sys.exit(BAD_INPUT)
  except KeyboardInterrupt:  # raised by a library, or not on the main thread
    print_line(f"{program}: stopped", error=True)
    sys.exit(INTERRUPTED)
  finally:
    with contextlib.suppress(ValueError):  # whoever called the command as a function goes on
      signal.signal(signal.SIGINT, before)
