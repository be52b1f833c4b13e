r"""SegFormer on COCO-Stuff 164k, 171 classes, 512x512 (https://arxiv.org/abs/2105.15203, table 1).

`:b0` (which is what no word means) to `:b5`; `:mmseg`, ablations and files of init_from as in
`configs/segformer_ade20k.py`.

  python train.py --config=configs/segformer_coco_stuff.py:b0 \
    --config.data.manual_dir=DIR --config.init_from=mit_b0_20220624-7e0fe6dd.pth --workdir=...

Expected mIoU on val, single scale: b0 35.6, b1 40.2, b2 44.6, b3 45.5, b4 46.5, b5 46.7 (paper). Hardware:
8 V100 (paper), hours not published. Not run here yet.

The authors published no config for it: crop and 80,000 steps are the paper's, the rest is as on ADE20K.
"""

from configs import common, segformer_ade20k


def get_config(arg: str = ""):
  """`:b0` to `b5`; `mmseg`, `short` and the ablations of `segformer_ade20k.py`."""
  words = common.arguments(arg, *segformer_ade20k.WORDS)
  config = segformer_ade20k.recipe(words, crop=(512, 512))
  common.mmseg_data(config, "coco_stuff_164k", resize=(2048, 512), crop=(512, 512))
  if "short" not in words:
    config.total_steps = 80_000
  return config
