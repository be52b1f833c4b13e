r"""CGNet M3N21 on anybody's images/ and masks/.

  python train.py --config=configs/cgnet_m3n21_folder.py \
    --config.data.manual_dir=DIR --config.data.classes=road,car,tree --workdir=...

DIR has images/ and masks/ with files of equal names; jaxseg/data/folder.py says how they are
split. Masks are 8- or 16-bit PNGs of ids; `--config.data.label_map='((0,255),(7,0))'` maps ids
to classes, and 255 ignores. Start from weights of CGNet with `--config.init_from=FILE`: all
but the classifier is taken over (give the mean colour that belongs to the weights, too).

Expected mIoU: depends on the data; nothing was published for this file.
"""

from configs import common
from jaxseg.config import model_config


def get_config(arg: str = ""):
  """A recipe to start from: two hundred epochs of a few hundred images."""
  common.arguments(arg)
  config = common.base()

  config.data.name = "folder"
  config.data.classes = ("background", "object")
  config.data.crop_size = (256, 256)
  config.data.color = "photometric"

  config.model = model_config("cgnet_m3n21")

  config.total_steps = 10_000
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule.name = "poly"
  config.optimizer.schedule.power = 0.9
  # 200 of 10,000 steps; a shorter run warms up for as large a share of it.
  config.optimizer.schedule.warmup_steps = config.get_oneway_ref("total_steps") // 50

  config.eval.every_steps = 500
  config.checkpoint.every_steps = 500
  config.log.panel_every_steps = 500
  return config
