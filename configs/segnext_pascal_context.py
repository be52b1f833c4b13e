r"""SegNeXt on PASCAL Context, 59 classes, 480x480 (https://arxiv.org/abs/2209.08575, table 12).

`:tiny` (which is what no word means), `:small`, `:base`, `:large`; ablations and files of init_from as in
`configs/segnext_ade20k.py`. `--config.data.name=pascal_context_60` has the background as a class.

  python train.py --config=configs/segnext_pascal_context.py:tiny \
    --config.data.manual_dir=DIR --config.init_from=mscan_t_20230227-119e8c9f.pth --workdir=...

Expected mIoU on val, single scale / scales and flip: tiny 51.2 / 53.3, small 54.2 / 56.1, base 57.0 / 59.0,
large 58.7 / 60.3, and 59.2 / 60.9 from weights trained on ADE20K (paper). Hardware: 8 RTX 3090 (paper), hours
not published. Not run here yet.

The authors published no config for it: crop, batch and steps are the paper's, the fit into 520x520 is
mmsegmentation's.
"""

from configs import common, segnext_ade20k


def get_config(arg: str = ""):
  """`:tiny`, `small`, `base` or `large`; `mmseg` and the ablations of `segnext_ade20k.py`."""
  config = segnext_ade20k.recipe(common.arguments(arg, *segnext_ade20k.WORDS))
  common.mmseg_data(config, "pascal_context_59", resize=(520, 520), crop=(480, 480))
  config.total_steps = 80_000
  return config
