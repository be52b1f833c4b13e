"""Evaluates a trained model: exact mIoU, a table by class, a JSON report and a picture.

  python eval.py --workdir=runs/quickstart
  python eval.py --source=model.safetensors --config=configs/cgnet_m3n21_camvid.py

The first form evaluates a run of train.py on its own data, the second any weight file that
`jaxseg.from_pretrained` reads on the data of a config. `--config.key=value` changes a value.
"""

import sys

from jaxseg.train import command

if __name__ == "__main__":
  sys.exit(command.evaluate(sys.argv[1:]))
