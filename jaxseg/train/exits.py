"""With which code a program ends, and the error that asks for a restart."""

BAD_INPUT = 2  # a config, a data set or a workdir that cannot run
STOPPED = 1  # a run that had to stop (NaN), or an error of the program itself
# EX_TEMPFAIL: stopped from outside (preempted, lost host, hung step); the same command goes on.
RESTART = 75


class Restart(RuntimeError):
  """Stopped for a reason outside the run; the message names it. The same command goes on: exit code 75."""
