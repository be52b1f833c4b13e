r"""SegNeXt on Cityscapes, 19 classes, 1024x1024 (https://arxiv.org/abs/2209.08575, table 9).

`:tiny` (which is what no word means), `:small`, `:base`, `:large`; ablations and files of init_from as in
`configs/segnext_ade20k.py`.

  python train.py --config=configs/segnext_cityscapes.py:tiny \
    --config.data.manual_dir=DIR --config.init_from=mscan_t_20230227-119e8c9f.pth --workdir=...

Expected mIoU on val, windows of 1024x1024, single scale / scales and flip: tiny 79.8 / 81.4, small
81.3 / 82.7, base 82.6 / 83.8, large 83.2 / 83.9 (paper); PaddleSeg reaches 81.04, 81.33, 82.74, 83.32.
Hardware: 8 RTX 3090 (paper), hours not published. Not run here yet.
"""

from configs import common, segnext_ade20k


def get_config(arg: str = ""):
  """`:tiny`, `small`, `base` or `large`; `mmseg` and the ablations of `segnext_ade20k.py`."""
  config = segnext_ade20k.recipe(common.arguments(arg, *segnext_ade20k.WORDS))
  common.mmseg_data(config, "cityscapes", resize=(2048, 1024), crop=(1024, 1024))
  config.batch_size = 8
  config.eval.update(mode="slide", crop_size=(1024, 1024), stride=(768, 768), multiple=0)
  return config
