r"""SegNeXt on PASCAL VOC 2012, 21 classes, 512x512 (https://arxiv.org/abs/2209.08575, table 10).

`:tiny` (which is what no word means), `:small`, `:base`, `:large`; ablations and files of init_from as in
`configs/segnext_ade20k.py`. Two runs: 80,000 steps on train_aug, then `:finetune`, 80,000 on trainval from
the first one's workdir, for the test server (its mIoU on val then says nothing).

  python train.py --config=configs/segnext_voc.py:tiny \
    --config.data.manual_dir=DIR --config.init_from=mscan_t_20230227-119e8c9f.pth --workdir=FIRST
  python train.py --config=configs/segnext_voc.py:tiny,finetune \
    --config.data.manual_dir=DIR --config.init_from=FIRST --workdir=SECOND

Expected mIoU on test: tiny 82.7, small 85.3, base 87.5; large 90.6 with COCO, on which it trains 600,000
steps before 40,000 here (paper). Hardware: 8 RTX 3090 (paper), hours not published. Not run here yet.

The authors published no config for VOC: the fit into 2048x512 is mmsegmentation's, and that the second run
takes the first one's learning rate again is an assumption.
"""

from configs import common, segnext_ade20k


def get_config(arg: str = ""):
  """`:tiny`, `small`, `base` or `large`; `finetune`; `mmseg` and the ablations of `segnext_ade20k.py`."""
  words = common.arguments(arg, *segnext_ade20k.WORDS, "finetune")
  config = segnext_ade20k.recipe(words)
  common.mmseg_data(config, "voc", resize=(2048, 512), crop=(512, 512))
  config.data.train_split = "train_aug"
  config.total_steps = 80_000
  if "finetune" in words:
    config.data.train_split = "trainval"
    config.init_keep = ()
  return config
