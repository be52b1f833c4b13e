r"""SegFormer on ADE20K, 150 classes, 512x512 (https://arxiv.org/abs/2105.15203, tables 1, 2 and 6).

`:b0` (which is what no word means) to `:b5`, whose crop is 640x640 (`:b5,512`: 512x512); from MiT trained on
ImageNet.

  python train.py --config=configs/segformer_ade20k.py:b0 \
    --config.data.manual_dir=DIR --config.init_from=mit_b0_20220624-7e0fe6dd.pth --workdir=...

Expected mIoU on val, single scale / scales and flip: b0 37.4 / 38.0, b1 42.2 / 43.1, b2 46.5 / 47.5,
b3 49.4 / 50.0, b4 50.3 / 51.1, b5 51.0 / 51.8 (paper). Hardware: 8 V100 (paper), hours not published; b0
takes 45 hours for 200 epochs on an A100 by another trainer (netspresso). Not run here yet.

`:mmseg` is mmsegmentation 1.x: a decoder of width 256 with BatchNorm and ReLU in each projection, its
LayerNorm epsilons, its end of the warm-up, test pictures as they are, and its names of parameters (the last
LayerNorm of a stage has no "norm" in it there, so that it decays): 37.41 / 38.34, 40.97 / 42.54,
45.58 / 47.03, 47.82 / 48.81, 48.46 / 49.76, b5,512 49.13 / 50.22, b5 49.62 / 50.36.

Ablations, `:short` for the 40,000 steps in which the paper has them. Decoder width, b2: `:width256` 44.9,
`:width512` 45.0, as published (768) 45.4, `:width1024` 45.2, `:width2048` 45.6. `:stage4_only` b2 43.1 (with
24.7 M parameters, which leaves no room for the convolution that fuses the stages; ours keeps it and has
25.3 M). `:position_embedding` in place of the convolution in Mix-FFN: see `configs/segformer_cityscapes.py`.

The files of init_from are mmsegmentation's conversions of the authors': mit_b0_20220624-7e0fe6dd.pth,
mit_b1_20220624-02e5a6a1.pth, mit_b2_20220624-66e8bf70.pth, mit_b3_20220624-13b1141c.pth,
mit_b4_20220624-d588d980.pth, mit_b5_20220624-658746d9.pth; the authors' own (mit_b0.pth, ...), whose licence
is non-commercial like theirs, are read as well. Scales and flip: `eval.py --workdir=...
--config.eval.scales=0.75,0.875,1,1.125,1.25 --config.eval.flip`.
"""

from configs import common
from jaxseg.config import model_config

_SIZES = ("b0", "b1", "b2", "b3", "b4", "b5")
_ABLATIONS = {
  **{f"width{width}": ("decoder", "width", width) for width in (256, 512, 768, 1024, 2048)},
  "stage4_only": ("decoder", "stages", ("stage4",)),
  "position_embedding": ("encoder", "position", "embedding"),
}
_MMSEG = {
  "encoder": dict(epsilons="mmseg"),
  "decoder": dict(width=256, projection="conv", concat_order="fine_to_coarse"),
}
WORDS = (*_SIZES, "mmseg", "short", *_ABLATIONS)


def get_config(arg: str = ""):
  """`:b0` to `b5`, and `512` for b5; `mmseg`; `short` and the ablations above."""
  words = common.arguments(arg, *WORDS, "512")
  side = 640 if "b5" in words and "512" not in words else 512
  config = recipe(words, crop=(side, side))
  common.mmseg_data(config, "ade20k", resize=(2048, side), crop=(side, side))
  return config


def recipe(words: set[str], *, crop: tuple[int, int]):
  """What SegFormer's experiments on all data sets share; the data are the caller's."""
  config = common.base()
  mmseg = "mmseg" in words
  fields = common.ablated(words, _ABLATIONS)
  if "position_embedding" in words:
    fields["encoder"]["position_size"] = crop
  if mmseg:
    fields = {part: _MMSEG[part] | fields[part] for part in fields}
  config.model = model_config(f"segformer_{common.one_of(words, *_SIZES)}", **fields)
  config.total_steps = 40_000 if "short" in words else 160_000
  config.batch_size = 16
  layout, warmup = ("mmseg", "mmengine") if mmseg else ("nvlabs", "mmcv")
  common.mmseg_adamw(config, names=layout, warmup=warmup)
  config.eval.update(multiple=0 if mmseg else 32, multiple_rule="resize", every_steps=16_000)
  config.log.panel_every_steps = 16_000
  return config
