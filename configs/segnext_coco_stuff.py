r"""SegNeXt on COCO-Stuff 164k, 171 classes, 512x512 (https://arxiv.org/abs/2209.08575, table 9).

`:tiny` (which is what no word means), `:small`, `:base`, `:large`; ablations and files of init_from as in
`configs/segnext_ade20k.py`.

  python train.py --config=configs/segnext_coco_stuff.py:tiny \
    --config.data.manual_dir=DIR --config.init_from=mscan_t_20230227-119e8c9f.pth --workdir=...

Expected mIoU on val, single scale / scales and flip: tiny 38.7 / 39.1, small 42.2 / 42.8, base 45.8 / 46.3,
large 46.5 / 47.2 (paper, whose text says 172 classes where the authors' configs have 171). Hardware:
8 RTX 3090 (paper), hours not published. Not run here yet.
"""

from configs import common, segnext_ade20k


def get_config(arg: str = ""):
  """`:tiny`, `small`, `base` or `large`; `mmseg` and the ablations of `segnext_ade20k.py`."""
  config = segnext_ade20k.recipe(common.arguments(arg, *segnext_ade20k.WORDS))
  common.mmseg_data(config, "coco_stuff_164k", resize=(2048, 512), crop=(512, 512))
  config.total_steps = 80_000
  return config
