r"""DeepLab v2 on PASCAL VOC 2012 aug (10,582 images), 321x321 (https://arxiv.org/abs/1606.00915).

ResNet-101 with ASPP and three input scales; `:vgg16` is VGG16 with ASPP-L, `:vgg16,aspp_s` with the smaller
rates, `:vgg16,large_fov` with one branch.

  python train.py --config=configs/deeplabv2_voc.py \
    --config.data.manual_dir=DIR --config.init_from=deeplabv1_resnet101-coco.pth --workdir=...
  python train.py --config=configs/deeplabv2_voc.py:vgg16 \
    --config.data.manual_dir=DIR --config.init_from=vgg16_features-amdegroot-88682ab5.pth --workdir=...

Expected mIoU on val, without / with the CRF (paper): ResNet-101 76.35 / 77.69, from weights trained on COCO
(kazuto1011's PyTorch: 76.65 / 77.93; from ImageNet alone its users report 70 to 74); VGG16 LargeFOV
65.76 / 69.84, ASPP-S 66.98 / 69.73, ASPP-L 68.96 / 71.57. Not run here yet.

The files are kazuto1011's conversion of the authors' initial weights, and torchvision's
`VGG16_Weights.IMAGENET1K_FEATURES`, whose fc6 and fc7 start afresh here. ResNet's BatchNorms keep their
statistics, scales and offsets. The multipliers are Caffe's, as kazuto1011 has them for ResNet (where
convolutions have no biases but the head's). `--config.accumulate=10` runs it one image at a time, as the
authors did.
"""

from configs import common
from jaxseg.config import model_config
from jaxseg.errors import UserError

_RATES = {"aspp_s": (2, 4, 8, 12), "large_fov": (12,)}


def get_config(arg: str = ""):
  """`:vgg16`, and with it `aspp_s` or `large_fov`."""
  words = common.arguments(arg, "vgg16", *_RATES)
  vgg = "vgg16" in words
  head = sorted(words - {"vgg16"})
  if head and (not vgg or len(head) > 1):
    raise UserError(f"this config's :{','.join(head)} is one head of VGG16; give :vgg16,{head[0]}")
  config = common.base()

  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.crop_size = (321, 321)

  config.total_steps = 20_000
  config.batch_size = 10
  config.optimizer.name = "sgd"
  config.optimizer.weight_decay = 5e-4
  config.optimizer.groups = (
    (r"decoder/classifier\d?/kernel", 10.0, 1.0),
    (r"decoder/classifier\d?/bias", 20.0, 0.0),
    ("/bias", 2.0, 0.0),
  )
  config.optimizer.schedule.name = "poly"
  config.optimizer.schedule.power = 0.9
  config.loss.label_resize = "labels_nearest"
  config.init_keep = ("decoder/.*",)

  if vgg:
    config.data.scale_range = (1.0, 1.0)
    config.preprocess.mean = (123.0, 117.0, 104.0)
    config.preprocess.std = (1.0, 1.0, 1.0)
    rates = dict(rates=_RATES[head[0]]) if head else {}
    config.model = model_config("deeplabv2_vgg16", decoder=rates)
    config.optimizer.learning_rate = 1e-3
  else:
    config.data.scale_range = (0.5, 1.5)
    config.data.scale_step = 0.25
    config.preprocess.mean = (122.675, 116.669, 104.008)
    config.preprocess.std = (1.0, 1.0, 1.0)
    config.preprocess.channel_order = "bgr"
    config.model = model_config("deeplabv2_resnet101")
    config.model.scales = (1.0, 0.75, 0.5)  # each is supervised, and so is their maximum
    config.optimizer.learning_rate = 2.5e-4
    config.frozen = ("encoder/.*/norm/.*",)

  config.eval.every_steps = 5000
  config.log.panel_every_steps = 5000
  return config
