r"""Any model, from scratch, on your own images/ and masks/.

  python train.py --config=configs/folder.py:segformer_b0 --config.data.dir=FOLDER --workdir=...

The word after the colon is a model of `jaxseg.list_models()` (none means cgnet_m3n21). FOLDER has images/ and
masks/ (docs/own_data.md). The classes are those of FOLDER/classes.txt, one name a line in the order of the
ids; without it "class0", "class1", ... up to the largest id that any mask holds.

Training from nothing needs many images and many steps; where weights can be had, configs/finetune.py starts
from them and needs few. `--config.init_from=FILE` works here, too: all but the classifier is taken over.

Expected mIoU: depends on the data; nothing was published for this file.

Batch 8, crops of 256x256, scales 0.5 to 2, flip and colours, 10,000 steps, with the optimizers that the
models were published with: AdamW for SegFormer and SegNeXt, at 2e-4 since 6e-5 is meant for trained encoders,
Adam with 1e-3 for CGNet, SGD with 0.01 for DeepLab.
"""

from configs import common
from jaxseg import config as config_lib
from jaxseg import models
from jaxseg.data import folder
from jaxseg.errors import UserError


def get_config(arg: str = ""):
  """A model's name."""
  words = common.arguments(arg, "cgnet_m3n21", *models.SYSTEMS)
  arch = common.one_of(words, "cgnet_m3n21", *(name for name in models.SYSTEMS if name != "cgnet_m3n21"))
  config = common.base()

  config.data.name = "folder"
  config.data.dir = ""
  config.data.manual_dir = config.data.get_oneway_ref("dir")
  config.data.classes = ("class0", "class1")  # until `finish` has looked
  config.data.crop_size = (256, 256)
  config.data.color = "photometric"

  config.model = config_lib.model_config(arch)

  config.total_steps = 10_000
  config.optimizer.schedule.update(name="poly", power=0.9)
  # 200 of 10,000 steps; a shorter run warms up for as large a share of it.
  config.optimizer.schedule.warmup_steps = config.get_oneway_ref("total_steps") // 50
  if arch.startswith(("segformer", "segnext")):
    config.optimizer.update(name="adamw", learning_rate=2e-4, weight_decay=0.01)
    config.optimizer.groups = (("norm", 1.0, 0.0),)
    config.optimizer.schedule.power = 1.0
  elif arch.startswith("deeplab"):
    config.optimizer.update(name="sgd", learning_rate=0.01, weight_decay=5e-4)
  else:
    config.optimizer.update(name="adam", learning_rate=1e-3, weight_decay=5e-4)

  config.eval.every_steps = 500
  config.checkpoint.every_steps = 500
  config.log.panel_every_steps = 500
  return config


def finish(config, given: set[str]):
  """What the folder tells, where the command line (the keys `given`) does not."""
  if config.data.name != "folder":
    return  # synthetic data: nothing to look into
  if not config.data.manual_dir:
    raise UserError(
      "config.data.dir is empty; give the folder that has images/ and masks/: --config.data.dir=FOLDER"
    )
  if "data.classes" not in given:
    config.data.classes = folder.class_names(config.data)
