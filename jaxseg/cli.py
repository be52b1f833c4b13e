"""`jaxseg COMMAND ...`: looks the command up, reads its flags, prints its lines."""

import sys
from collections.abc import Sequence

from jaxseg import lazy
from jaxseg.commands import COMMANDS
from jaxseg.commands.flags import PREFIX, make_parser, parse, split
from jaxseg.config.values import nearest
from jaxseg.console import exit_on_user_error, print_line
from jaxseg.errors import UserError


def main(argv: Sequence[str] | None = None, *, program: str = "jaxseg") -> None:
  """The console script: exit code 0, 2 for bad input (one sentence), 75 preempted, 130 Ctrl-C, 1 a bug.

  Args:
    argv: the words after the program's name; None takes those of this process.
    program: what a message begins with.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  with exit_on_user_error(program):
    if not words or words[0] in ("-h", "--help"):
      print_line(_usage())
      if not words:
        raise UserError("give a command")
      return
    if words[0] == "--version":
      import jaxseg

      print_line(f"jaxseg {jaxseg.__version__}")
      return
    name = words.pop(0)
    if name not in COMMANDS:
      raise UserError(f"there is no command {name!r}{nearest(name, COMMANDS)}")
    _run(name, words, program if program != "jaxseg" else f"jaxseg {name}")


def _run(name: str, words: list[str], program: str) -> None:
  with exit_on_user_error(program):
    command = COMMANDS[name]
    module = lazy.load(command.module)
    if hasattr(module, "main"):
      module.main(words, program)
      return
    changes, rest = split(words)
    if changes and not command.changes:
      raise UserError(f"the command takes no {PREFIX}{changes[0][0]}")
    parser = make_parser(f"jaxseg {name}", module.__doc__)
    module.add_flags(parser)
    lines = module.run(parse(parser, rest), changes)
    print_line("\n".join(lines))


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
  return "\n".join(
    [
      "usage: jaxseg COMMAND [FLAGS] [--config.key=value ...]",
      "",
      "Semantic segmentation for JAX.",
      "",
      *lines,
      "",
      "jaxseg COMMAND --help shows the flags of one.",
    ]
  )
