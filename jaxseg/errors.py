"""The one class of error whose message is a sentence for a person."""


class UserError(ValueError):
  """Something that the user can mend: the message gives the value, what was expected, and the remedy.

  Only this class becomes one line without a traceback and exit code 2 on the command line. Any other
  exception is a bug and keeps its traceback.
  """
