"""`python -m jaxseg`, and the console script."""

import sys


def main() -> None:
  """Runs `jaxseg.cli.main`; Ctrl-C while it is imported ends without a traceback, too."""
  try:
    from jaxseg import cli
  except KeyboardInterrupt:
    sys.exit(130)
  cli.main()


if __name__ == "__main__":
  main()
