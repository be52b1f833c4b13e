r"""MSCAN and MiT on ImageNet-1K, 224x224, 300 epochs: the encoders that SegNeXt and SegFormer start from.

  python train.py --config=configs/pretrain.py:mscan_tiny \
    --config.data.manual_dir=DIR --config.dtype=bfloat16 --workdir=...

`:mscan_small`, `:mscan_base`, `:mscan_large` and `:mit_b0` to `:mit_b5` are the other encoders. DIR has
train/ and val/, see jaxseg/data/imagenet.py. A segmentation model starts from the result with
`--config.init_from=WORKDIR --config.init_keep="decoder/.*"`; docs/pretrain.md has the whole way to mIoU.

Expected top-1 on val (papers): MSCAN-T 75.9, S 81.2, B 83.0, L 83.9 (SegNeXt, table 3); MiT-B0 70.5,
B1 78.7, B2 81.6, B3 83.1, B4 83.6, B5 83.8 (SegFormer, table 7). Not run here.
Hardware: 8 GPUs with 128 images each (VAN's code); neither paper says how many hours.

Where the values are from. Both papers say "as DeiT" (https://arxiv.org/abs/2012.12877) and give no list.
MSCAN's authors published the training code of VAN (https://github.com/Visual-Attention-Network), which
agrees with the values below: AdamW, weight decay 0.05, rate 1e-3 for a batch of 1024, cosine over 300
epochs, 5 epochs of warm-up from 1e-6, no clipping and no average; RandAugment m9-mstd0.5-inc1, mixup 0.8,
cutmix 1.0, erasing 0.25 and label smoothing 0.1; one augmented copy of each picture.

No source confirms, for these encoders:
- drop path: MSCAN has VAN's (0.1, 0.1, 0.1, 0.2 by size), MiT DeiT's 0.1 at every size;
- that MiT's code has VAN's values where DeiT's differ: DeiT's rate is the same, its final rate is 1e-5
  and it sees each picture three times an epoch;
- the final rate 1e-6 (VAN's), the middle of 0.9 in evaluation for MSCAN (VAN's, from memory) and of 0.875
  for MiT (DeiT's);
- no weight decay on biases, norms and layer scales (timm's rule).

Different here: mixup and cutmix are drawn once for the batch of all devices, not once a device, and
BatchNorm sees that batch too; pictures are resampled bicubically, where VAN's code draws bilinear or
bicubic; VAN's code adds 10 epochs at the final rate (`--config.total_steps` and
`--config.optimizer.schedule.total_steps` are two keys).
"""

import ml_collections

from configs import common
from jaxseg.train.config import model_config

EXAMPLES = 1_281_167
EPOCHS, WARMUP_EPOCHS = 300, 5
DROP_PATH = {"mscan_large": 0.2}  # 0.1 for every other size
ENCODERS = (
  "mscan_tiny", "mscan_small", "mscan_base", "mscan_large",
  "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5",
)  # fmt: skip


def get_config(arg: str = ""):
  """The encoder's name; `:mscan_tiny` where there is none."""
  encoder = common.one_of(common.arguments(arg, *ENCODERS), *ENCODERS)
  config = common.base()
  config.task = "classification"
  config.init_keep = ("head/.*",)

  config.data = data()
  config.loss = ml_collections.ConfigDict(dict(label_smoothing=0.1))
  # crop_share: of the short side that the evaluated middle has.
  config.eval = ml_collections.ConfigDict(
    dict(every_steps=0, batch_size=256, crop_share=0.9 if encoder.startswith("mscan") else 0.875)
  )

  config.model = model_config(encoder, encoder=dict(drop_path_rate=DROP_PATH.get(encoder, 0.1)))

  config.batch_size = 1024
  # All follow the batch, and can be overridden themselves; an epoch's last partial batch is dropped.
  batch = config.get_oneway_ref("batch_size")
  config.total_steps = EPOCHS * (EXAMPLES // batch)
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = batch.to_float() * (1e-3 / 1024)
  config.optimizer.weight_decay = 0.05
  config.optimizer.groups = ((r"bias$|norm\d*/scale$|layer_scale\d$", 1.0, 0.0),)
  schedule = config.optimizer.schedule
  schedule.update(name="cosine", end_value=1e-6, warmup="timm", warmup_ratio=1e-3)
  schedule.total_steps = config.get_oneway_ref("total_steps")
  schedule.warmup_steps = WARMUP_EPOCHS * (EXAMPLES // batch)
  schedule.every = 1 * (EXAMPLES // batch)  # timm changes the rate once an epoch

  config.eval.every_steps = 10 * (EXAMPLES // batch)
  config.checkpoint.every_steps = 1 * (EXAMPLES // batch)
  config.log.every_steps = 50
  return config


def data() -> ml_collections.ConfigDict:
  """Where pictures come from and how training changes them."""
  return ml_collections.ConfigDict(
    dict(
      name="imagenet",  # or "synthetic_classes"
      data_dir="",  # prepared data; empty is ~/.cache/jaxseg
      manual_dir="",  # the data set as its authors distribute it
      train_split="train",
      eval_split="val",
      crop_size=(224, 224),  # height, width
      crop_area=(0.08, 1.0),  # share of the picture
      crop_aspect=(3 / 4, 4 / 3),  # width over height
      flip=0.5,
      interpolation="bicubic",  # or "bilinear"
      randaugment_layers=2,  # operations on a picture; 0 for none
      randaugment_magnitude=9.0,  # up to 10
      randaugment_std=0.5,
      erase_probability=0.25,
      mixup_alpha=0.8,  # 0 switches it off, like the next
      cutmix_alpha=1.0,
      switch_probability=0.5,  # of cutmix, where both are on
      workers=-1,  # worker processes
      classes=(),  # synthetic_classes, like the next three
      image_size=(96, 96),
      num_train=2000,
      num_val=100,
    )
  )
