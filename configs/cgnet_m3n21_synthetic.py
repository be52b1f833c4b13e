r"""CGNet M3N21 on drawn scenes: the quickstart, nothing to download.

  python train.py --config=configs/cgnet_m3n21_synthetic.py --workdir=...

Classes are kinds of texture in colours drawn at random, so that a pixel's colour says little
about its class; configs/colour_only_synthetic.py shows how little.

Expected val mIoU: 0.83 (ours, seed 0, two CPU cores).
"""

from configs import common
from jaxseg.config import model_config


def get_config(arg: str = ""):
  """The quickstart's experiment."""
  common.arguments(arg)
  config = common.base()

  config.data.name = "synthetic"
  config.data.image_size = (96, 96)
  config.data.crop_size = (96, 96)
  # The scale of a texture is part of what it is.
  config.data.scale_range = (1.0, 1.0)
  config.preprocess.mean = (127.5, 127.5, 127.5)
  config.preprocess.std = (64.0, 64.0, 64.0)

  config.model = model_config("cgnet_m3n21")

  config.total_steps = 300
  config.batch_size = 8
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule.name = "poly"
  config.optimizer.schedule.power = 0.9

  config.eval.batch_size = 20
  config.checkpoint.every_steps = 100
  return config
