r"""DeepLab v1 on VGG16, PASCAL VOC 2012 aug (10,582 images), 321x321 (https://arxiv.org/abs/1412.7062).

LargeFOV: a 3x3 of rate 12 in place of VGG's fc6. `:msc` joins branches off the image and the first four
poolings.

  python train.py --config=configs/deeplabv1_voc.py \
    --config.data.manual_dir=DIR --config.init_from=vgg16_features-amdegroot-88682ab5.pth --workdir=...

Expected mIoU on val, without / with the CRF: LargeFOV 62.25 / 67.64, MSc-LargeFOV 64.21 / 68.70 (paper,
4.84 images/s of training on a Titan). Not run here yet.

The file of init_from is torchvision's `VGG16_Weights.IMAGENET1K_FEATURES`, Caffe's convolutions for which the
mean colour below is meant; the paper also cuts fc6 and fc7 out of VGG's, which start afresh here.
Batch and steps are the released solver's; the paper's text says 20 images. The CRF (`eval.py --crf`) is the
one that the authors searched for each of the two.
"""

from configs import common
from jaxseg.config import model_config


def get_config(arg: str = ""):
  """`:msc` for MSc-LargeFOV."""
  msc = "msc" in common.arguments(arg, "msc")
  config = common.base()

  config.data.name = "voc"
  config.data.train_split = "train_aug"
  config.data.crop_size = (321, 321)  # 8n + 1: logits of 41x41 lie on every eighth pixel
  config.data.scale_range = (1.0, 1.0)
  config.preprocess.mean = (123.0, 117.0, 104.0)
  config.preprocess.std = (1.0, 1.0, 1.0)

  config.model = model_config("deeplabv1_msc_vgg16" if msc else "deeplabv1_vgg16")
  config.init_keep = ("decoder/.*",)

  config.total_steps = 6000
  config.batch_size = 30
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 5e-4
  # Caffe's multipliers: ten times the rate for the classifier, twice that for biases, which do not decay.
  config.optimizer.groups = (
    ("decoder/classifier/kernel", 10.0, 1.0),
    ("decoder/classifier/bias", 20.0, 0.0),
    ("/bias", 2.0, 0.0),
  )
  config.optimizer.schedule.name = "step"
  config.optimizer.schedule.boundaries = (2000, 4000)
  config.loss.label_resize = "labels_nearest"

  config.eval.every_steps = 2000
  config.eval.crf.update(w1=4.0, sxy=83.0 if msc else 121.0, srgb=5.0)
  config.log.panel_every_steps = 2000
  return config
