"""`jaxseg eval` from a checkout.

python eval.py --workdir=runs/quickstart [--split=val] [--step=best]
"""

import sys

from jaxseg.cli import main

if __name__ == "__main__":
  main(["eval", *sys.argv[1:]], program="eval.py")
