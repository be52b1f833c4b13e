"""The one class of error whose message is a sentence for a person."""


class UserError(ValueError):
  """Something that the user can mend: the message gives the value, what was expected, and the remedy.

  Only this class becomes one line without a traceback and exit code 2 on the command line. Any other
  exception is a bug and keeps its traceback.
  """

  def __init__(self, message: object = ""):
    # Of names of files and words in them, some were chosen to harm a terminal.
    super().__init__("\n".join(map(printable, str(message).split("\n"))))


def printable(text: object) -> str:
  r"""A name that somebody else chose, for a terminal or a report: \x1b and \n for what is not printable."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
