r"""SegNeXt on iSAID, 16 classes, tiles of 896x896 (https://arxiv.org/abs/2209.08575, table 4).

`:tiny` (which is what no word means), `:small`, `:base`, `:large`; ablations and files of init_from as in
`configs/segnext_ade20k.py`.

  python train.py --config=configs/segnext_isaid.py:tiny \
    --config.data.manual_dir=DIR --config.init_from=mscan_t_20230227-119e8c9f.pth --workdir=...

Expected mIoU on val, single scale: tiny 68.3, small 68.8, base 69.9, large 70.3 (paper). Hardware: 8 RTX 3090
(paper), hours not published. Not run here yet.

The authors published no config for it: crop, batch and steps are the paper's, the rest is mmsegmentation's.
"""

from configs import common, segnext_ade20k


def get_config(arg: str = ""):
  """`:tiny`, `small`, `base` or `large`; `mmseg` and the ablations of `segnext_ade20k.py`."""
  config = segnext_ade20k.recipe(common.arguments(arg, *segnext_ade20k.WORDS))
  common.mmseg_data(config, "isaid", resize=(896, 896), crop=(896, 896))
  return config
