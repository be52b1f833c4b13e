"""`jaxseg train` from a checkout.

python train.py --config=configs/cgnet_m3n21_synthetic.py --workdir=runs/quickstart
"""

import sys

from jaxseg.cli import main

if __name__ == "__main__":
  main(["train", *sys.argv[1:]], program="train.py")
