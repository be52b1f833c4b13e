r"""DeepLab v3+ on PASCAL VOC 2012 aug, 513x513, or Cityscapes, 769x769 (https://arxiv.org/abs/1802.02611).

Xception-65 with separable convolutions; `:resnet101`, `:resnet50` (plain convolutions) and `:mobilenetv2`
instead. `:cityscapes` trains on Cityscapes' fine labels, `:finetune` is the second half on VOC: both as
in `configs/deeplabv3.py`, whose recipe the paper takes over.

  python train.py --config=configs/deeplabv3plus.py:resnet101 \
    --config.data.manual_dir=DIR --config.init_from=resnet101-63fe2227.pth --workdir=FIRST
  python train.py --config=configs/deeplabv3plus.py:resnet101,finetune \
    --config.data.manual_dir=DIR --config.init_from=FIRST --workdir=SECOND

Expected mIoU on VOC val (paper): ResNet-101 78.85 at output stride 16, 79.35 at 8, 80.57 with scales and
flip; Xception-65 79.79 at 16, 80.02 at 8, 81.39 with scales and flip; Cityscapes val, Xception-65, 78.79.
Hardware: not published for this model. Not run here yet.

Where this is not TensorFlow's code: as in `configs/deeplabv3.py`. Xception-65 starts afresh, without the
ImageNet weights that the numbers above rest on: no layout of them is known here.
"""

from configs import common, deeplabv3


def get_config(arg: str = ""):
  """`:resnet50`, `:resnet101` or `:mobilenetv2`; `cityscapes`, or `finetune` after a first run."""
  backbones = ("xception65", "resnet101", "resnet50", "mobilenetv2")
  words = common.arguments(arg, *backbones, "cityscapes", "finetune")
  return deeplabv3.recipe("deeplabv3plus", common.one_of(words, *backbones), words)
