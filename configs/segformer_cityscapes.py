r"""SegFormer on Cityscapes, 19 classes, 1024x1024 (https://arxiv.org/abs/2105.15203, tables 1 to 3).

`:b0` (which is what no word means) to `:b5`; `:768x768`, `:640x1280` and `:512x1024` are the smaller crops
that the authors trained b0 with. `:mmseg`, ablations and files of init_from as in
`configs/segformer_ade20k.py`.

  python train.py --config=configs/segformer_cityscapes.py:b0 \
    --config.data.manual_dir=DIR --config.init_from=mit_b0_20220624-7e0fe6dd.pth --workdir=...

Expected mIoU on val, windows of 1024x1024, single scale / scales and flip: b0 76.2 / 78.1, b1 78.5 / 80.0,
b2 81.0 / 82.2, b3 81.7 / 83.3, b4 82.3 / 83.9, b5 82.4 / 84.0 (paper); b0 at a short side of 768 75.3,
640 73.7, 512 71.9. `:mmseg` 76.54 / 78.22, 78.56 / 79.73, 81.08 / 82.18, 81.94 / 83.14, 81.89 / 83.38,
82.25 / 83.48. Hardware: 8 V100 (paper), hours not published. Not run here yet.

Position (encoder size not stated): `:768x768,position_embedding` 77.3 in windows of 768x768 and 74.0 on whole
pictures of 1024x2048 (`--config.eval.mode=whole --config.eval.resize=2048,1024`), with Mix-FFN 80.5 and 79.8.

What the smaller crops are evaluated on is read off the paper's table of speeds: pictures fitted into that
height, whole at 640 and 512; at 768 windows, a quarter of which overlaps as at 1024.
Scales and flip: `eval.py --workdir=... --config.eval.scales=0.5,0.75,1,1.25,1.5,1.75,2 --config.eval.flip`.
"""

from configs import common, segformer_ade20k

# Crop → (long, short) that pictures are fitted into, window, stride.
_SIZES = {
  "1024x1024": ((1024, 1024), (2048, 1024), (768, 768)),
  "768x768": ((768, 768), (1536, 768), (576, 576)),
  "640x1280": ((640, 1280), (1280, 640), ()),
  "512x1024": ((512, 1024), (1024, 512), ()),
}


def get_config(arg: str = ""):
  """`:b0` to `b5`; `768x768`, `640x1280` or `512x1024`; `mmseg`, ablations of `segformer_ade20k.py`."""
  words = common.arguments(arg, *segformer_ade20k.WORDS, *_SIZES)
  crop, resize, stride = _SIZES[common.one_of(words, *_SIZES)]
  config = segformer_ade20k.recipe(words, crop=crop)
  common.mmseg_data(config, "cityscapes", resize=resize, crop=crop)
  config.batch_size = 8
  config.eval.multiple = 0
  if stride:
    config.eval.update(mode="slide", crop_size=crop, stride=stride)
  config.eval.every_steps = 4000
  config.log.panel_every_steps = 4000
  return config
