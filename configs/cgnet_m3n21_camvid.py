r"""CGNet M3N21 on CamVid, 11 classes, 360x480 (https://arxiv.org/abs/1811.08201, table 12).

The paper's recipe: trained from scratch on train + val (468 images), evaluated on test (233).

  python train.py --config=configs/cgnet_m3n21_camvid.py \
    --config.data.manual_dir=DIR --workdir=...

DIR has the SegNet layout: train/ trainannot/ val/ valannot/ test/ testannot/.

Expected mIoU: 65.6 on test (paper); 65.54 (the authors' checkpoint, evaluated by us).
The full recipe has not been run here yet.

`:cpu` is the recipe that two cores finish: 1,500 steps of batch 8 at crop 256, trained on the
367 images of train alone and evaluated on the 101 of val. The authors' PyTorch code reaches 0.59
there after 1,500 steps (0.37 / 0.52 / 0.55 / 0.56 / 0.58 / 0.59 every 250 steps, one seed).

Where this is the authors' code and not the paper: the mean colour is subtracted in the order
that the code has it. It was computed as (blue, green, red) and is subtracted from (red, green,
blue); with the order that one would expect, their checkpoint loses 12.9 mIoU.
"""

from configs import common
from jaxseg.config import model_config

# 1 / ln(1.10 + share of the class) as saved by the authors. Their histogram counts the unlabelled
# pixels as the last class, so that bicyclist has 7.5455 where its own share gives 9.8089.
WEIGHTS_TRAINVAL = (
  4.4287, 3.4432, 9.6272, 2.9082, 6.9883, 5.2119, 9.4902, 9.1505, 7.1655, 9.8886, 7.5455,
)  # fmt: skip
# The same formula over the labelled pixels of the 367 training images.
WEIGHTS_TRAIN = (
  4.1112, 3.3982, 9.5630, 2.7980, 7.3049, 5.4540, 9.4029, 9.4412, 6.6961, 9.8676, 10.1971,
)  # fmt: skip


def get_config(arg: str = ""):
  """`:cpu` trains on train alone in a budget that two CPU cores can afford."""
  cpu = "cpu" in common.arguments(arg, "cpu")
  config = common.base()

  config.data.name = "camvid"
  config.data.train_split = "train+val"
  config.data.eval_split = "test"
  config.data.crop_size = (360, 360)
  config.data.scale_step = 0.1
  config.data.pad = "before_flip"
  config.preprocess.mean = (105.6578, 103.3298, 99.6254)
  config.preprocess.std = (1.0, 1.0, 1.0)

  config.model = model_config("cgnet_m3n21")

  config.total_steps = 800 * (468 // 8)  # epochs x steps, the last partial batch dropped
  config.batch_size = 8
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule.name = "poly"
  config.optimizer.schedule.power = 0.9
  config.loss.class_weights = WEIGHTS_TRAINVAL
  config.loss.normalize_by = "weights"

  config.eval.every_steps = 5800  # 100 epochs
  config.checkpoint.every_steps = 1160
  config.log.panel_every_steps = 5800

  if cpu:
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.crop_size = (256, 256)
    config.data.scale_step = 0.0
    config.data.pad = "after_flip"
    config.total_steps = 1500
    config.loss.class_weights = WEIGHTS_TRAIN
    config.eval.every_steps = 250
    config.checkpoint.every_steps = 125
    config.log.panel_every_steps = 250
  return config
