"""Trains a segmentation model.

  python train.py --config=configs/cgnet_m3n21_synthetic.py --workdir=runs/quickstart

The same command on every host of a pod, and the same command again to go on after a stop.
`--config=FILE:arg,arg` picks structure (`:smoke` shrinks any config), `--config.key=value`
changes any value of it.
"""

import sys

from jaxseg.train import command

if __name__ == "__main__":
  sys.exit(command.train(sys.argv[1:]))
