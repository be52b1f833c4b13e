r"""1x1 convolutions on the quickstart's scenes: what colour alone gives away.

  python train.py --config=configs/colour_only_synthetic.py --workdir=...

Data, steps and schedule are those of configs/cgnet_m3n21_synthetic.py.

Expected val mIoU: 0.07 (ours, 300 steps; the commonest class alone gives 0.02).
"""

from configs import cgnet_m3n21_synthetic, common
from jaxseg.config import model_config


def get_config(arg: str = ""):
  """The quickstart's baseline."""
  common.arguments(arg)
  config = cgnet_m3n21_synthetic.get_config()
  config.model = model_config("colour_only")
  return config
