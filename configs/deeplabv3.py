r"""DeepLab v3 on PASCAL VOC 2012 aug, 513x513, or Cityscapes, 769x769 (https://arxiv.org/abs/1706.05587).

ResNet-101; `:resnet50` and `:mobilenetv2` (which has the image-level branch and a 1x1 alone) instead.
`:cityscapes` trains on Cityscapes' fine labels.

  python train.py --config=configs/deeplabv3.py \
    --config.data.manual_dir=DIR --config.init_from=resnet101-63fe2227.pth --workdir=FIRST
  python train.py --config=configs/deeplabv3.py:finetune \
    --config.data.manual_dir=DIR --config.init_from=FIRST --workdir=SECOND

`:finetune` is the paper's second half on VOC: from the first half's workdir, at output stride 8 with
BatchNorm fixed, on train + val for the test server (its mIoU on val then says nothing;
`--config.data.train_split=train_aug` keeps val apart).

Expected mIoU (paper, ResNet-101): VOC val 77.21 at output stride 16, 78.51 at 8, 79.77 with scales and flip;
VOC test 85.7 with COCO; Cityscapes val 77.23 at 16, 77.82 at 8, 79.30 with scales and flip. MobileNetV2 on
VOC val 75.32 (TensorFlow's model zoo, with COCO). Hardware: about 40 images/s at 513x513 on a TPU v2-8
(TensorFlow's report). Not run here yet.

Where this is not TensorFlow's code: the ImageNet weights and their colours are torchvision's, with its
7x7 stem (MobileNetV2 starts afresh: no layout of ImageNet weights is known here).
"""

from configs import common
from jaxseg.config import model_config

_NORMS = r".*norm/(scale|bias)"


def get_config(arg: str = ""):
  """`:resnet50` or `:mobilenetv2`; `cityscapes`, or `finetune` after a first run."""
  words = common.arguments(arg, "resnet50", "resnet101", "mobilenetv2", "cityscapes", "finetune")
  backbone = common.one_of(words, "resnet101", "resnet50", "mobilenetv2")
  return recipe("deeplabv3", backbone, words)


def recipe(head: str, backbone: str, words: set[str]):
  """The config that v3 and v3+ share."""
  common.one_of(words, "voc", "cityscapes", "finetune")
  config = common.base()

  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.crop_size = (513, 513)
  config.data.scale_step = 0.25

  light = backbone in ("mobilenetv2", "xception65")
  encoder = dict(norm_momentum=3e-4)  # TensorFlow's decay 0.9997
  if "finetune" in words:
    encoder["output_stride"] = 8  # and the decoder's rates double
  config.model = model_config(
    f"{head}_{backbone}", encoder=encoder, decoder=dict(norm_momentum=3e-4, align_corners=True)
  )
  if light:
    # Pixels in -1..1.
    config.preprocess.mean = config.preprocess.std = (127.5, 127.5, 127.5)
  config.init_keep = ("decoder/.*",)

  config.total_steps = 30_000
  config.batch_size = 16
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.007
  config.optimizer.weight_decay = 4e-5 if light else 1e-4
  # TensorFlow's decay is one of kernels, and not of depthwise ones.
  config.optimizer.groups = (("norm/|/bias|depthwise/", 1.0, 0.0),)
  config.optimizer.schedule.name = "poly"
  config.optimizer.schedule.power = 0.9

  if "cityscapes" in words:
    config.data.name = "cityscapes"
    config.data.train_split = "train"
    config.data.crop_size = (769, 769)
    config.total_steps = 90_000
  if "finetune" in words:
    config.data.train_split = "trainval"
    config.optimizer.learning_rate = 0.001
    config.init_keep = ()
    config.frozen = (_NORMS,)

  config.eval.every_steps = 5000
  config.log.panel_every_steps = 5000
  return config
