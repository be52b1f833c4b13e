r"""SegFormer on PASCAL Context, 59 classes, 480x480 (model: https://arxiv.org/abs/2105.15203).

`:b0` (which is what no word means) to `:b5`; `:mmseg`, ablations and files of init_from as in
`configs/segformer_ade20k.py`. `--config.data.name=pascal_context_60` has the background as a class.

  python train.py --config=configs/segformer_pascal_context.py:b0 \
    --config.data.manual_dir=DIR --config.init_from=mit_b0_20220624-7e0fe6dd.pth --workdir=...

Expected mIoU: neither the authors nor mmsegmentation published SegFormer on this data set. The recipe is
SegFormer's, with the crop, batch and steps that SegNeXt was published with and mmsegmentation's fit into
520x520, so that the two can be compared (SegNeXt: 51.2 for tiny to 58.7 for large). Not run here yet.
"""

from configs import common, segformer_ade20k


def get_config(arg: str = ""):
  """`:b0` to `b5`; `mmseg`, `short` and the ablations of `segformer_ade20k.py`."""
  words = common.arguments(arg, *segformer_ade20k.WORDS)
  config = segformer_ade20k.recipe(words, crop=(480, 480))
  common.mmseg_data(config, "pascal_context_59", resize=(520, 520), crop=(480, 480))
  if "short" not in words:
    config.total_steps = 80_000
  return config
