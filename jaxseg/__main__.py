"""`python -m jaxseg`, and the console script: a sentence where the training extra is missing."""

import sys

from jaxseg import lazy


def main() -> None:
  """Runs `jaxseg.cli.main`."""
  try:
    cli = lazy.load("jaxseg.cli")
  except ModuleNotFoundError as error:
    print(f"jaxseg: {error}", file=sys.stderr)
    sys.exit(2)
  cli.main()


if __name__ == "__main__":
  main()
