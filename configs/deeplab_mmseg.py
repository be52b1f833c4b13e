r"""DeepLab v3 and v3+ as mmsegmentation trains them: ResNet-50-D8, Cityscapes, 512x1024, 40,000 steps.

https://github.com/open-mmlab/mmsegmentation: output stride 8, heads of 512 channels, an auxiliary FCN head.
`:v3plus` is v3+ and `:resnet101` the larger encoder; `:voc` (VOC 2012 aug, 20,000 steps) and `:ade20k`
(80,000) are the other data sets, 512x512; `:long` doubles the steps; `:769` is Cityscapes at 769x769,
corners aligned, evaluated by sliding windows.

  python train.py --config=configs/deeplab_mmseg.py:v3plus,resnet101,voc \
    --config.data.manual_dir=DIR --config.init_from=resnet101_v1c-e67eebb6.pth --workdir=...

Expected mIoU (mmsegmentation's model zoo, single scale), the usual steps / `:long`:

                 v3 R50         v3 R101        v3+ R50        v3+ R101
  Cityscapes     79.09 / 79.32  77.12 / 80.20  79.61 / 80.09  80.21 / 80.97
  at 769         78.58 / 79.89  79.27 / 79.67  78.97 / 79.83  79.46 / 80.65
  VOC 2012 aug   76.17 / 77.68  78.70 / 77.92  75.93 / 76.81  77.22 / 78.62
  ADE20K         42.42 / 42.66  44.08 / 45.00  42.72 / 43.95  44.60 / 45.47

Hardware: 4 V100, 6 to 14 GB each (model zoo). Not run here yet.
"""

from configs import common
from jaxseg.config import model_config

_STEPS = {"cityscapes": 40_000, "voc": 20_000, "ade20k": 80_000}


def get_config(arg: str = ""):
  """`:v3plus`; `resnet101`; `voc` or `ade20k`; `long`; `769`."""
  words = common.arguments(arg, "v3plus", "resnet50", "resnet101", *_STEPS, "long", "769")
  backbone = common.one_of(words, "resnet50", "resnet101")
  dataset = common.one_of(words, *_STEPS)
  large = "769" in words
  if large:
    common.one_of(words, "769", "voc", "ade20k")
  config = common.base()

  config.data.name = dataset
  config.data.resize = (2048, 1024) if dataset == "cityscapes" else (2048, 512)
  config.data.crop_size = (512, 1024) if dataset == "cityscapes" else (512, 512)
  config.data.cat_max_ratio = 0.75
  config.data.color = "photometric"
  if dataset == "voc":
    config.data.train_split = "train_aug"
  if large:
    config.data.resize = (2049, 1025)
    config.data.crop_size = (769, 769)

  decoder = dict(channels=512, fuse_kernel=3, dropout="channels", dropout_rate=0.1, align_corners=large)
  if "v3plus" in words:
    decoder |= dict(separable=True, aspp_dropout_rate=0.0)
  config.model = model_config(
    f"deeplabv3{'plus' if 'v3plus' in words else ''}_{backbone}",
    encoder=dict(stem="v1c", output_stride=8, contract_dilation=True, multi_grid=()),
    decoder=decoder,
  )
  config.model.auxiliary = True  # weight 0.4
  config.init_keep = ("(aux_)?decoder/.*",)

  config.total_steps = _STEPS[dataset] * (2 if "long" in words else 1)
  config.batch_size = 8 if dataset == "cityscapes" else 16
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.01
  config.optimizer.weight_decay = 5e-4
  config.optimizer.schedule.name = "poly"
  config.optimizer.schedule.power = 0.9
  config.optimizer.schedule.end_value = 1e-4
  config.optimizer.schedule.warmup = "mmengine"  # the decay reaches its end at the last step
  config.loss.normalize_by = "all"

  config.eval.resize = config.data.resize
  if large:
    config.eval.update(mode="slide", crop_size=(769, 769), stride=(513, 513))
  config.eval.every_steps = 8000
  config.log.panel_every_steps = 8000
  return config
