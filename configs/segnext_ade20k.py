r"""SegNeXt on ADE20K, 150 classes, 512x512 (https://arxiv.org/abs/2209.08575, tables 5 to 9).

`:tiny` (which is what no word means), `:small`, `:base`, `:large`; from MSCAN trained on ImageNet.

  python train.py --config=configs/segnext_ade20k.py:tiny \
    --config.data.manual_dir=DIR --config.init_from=mscan_t_20230227-119e8c9f.pth --workdir=...

Expected mIoU on val, single scale / scales and flip: tiny 41.1 / 42.2, small 44.3 / 45.8, base 48.5 / 49.9,
large 51.0 / 52.1 (paper); seeds move large between 49.6 and 51.0. Hardware: 8 RTX 3090 (paper), hours not
published; T needs 17.9 GB of an A100 (mmsegmentation). Not run here yet.

`:mmseg` is mmsegmentation 1.x's recipe, which differs in the end of the warm-up and in padding test pictures
to multiples of 32 instead of resizing them: 41.50 / 42.59, 44.16 / 45.81, 48.03 / 49.68, 50.99 / 52.10.

Ablations, single scale / scales and flip. Of MSCA, tiny: `:branch7` 39.6, `:branch11` 39.7, `:branch21` 40.0,
`:no_mix` (no 1x1) 39.1, `:no_gate` 40.5; `:large_kernel` (VAN's attention) tiny 39.5 / 40.9, small
43.5 / 45.2. Of the decoder's global context, base: `:criss_cross` 47.3 / 48.6, `:ema` 48.0 / 49.1,
`:nonlocal` 48.6 / 50.0; `:no_context` is without (not in the paper). Of what the decoder reads, tiny:
`:last_stage` 30.9 (as printed, perhaps a slip) / 40.6; `:stage1` (all four) 40.7 / 42.2. Those of the encoder
rest on an encoder that was pretrained in the same form.

The files of init_from are mmsegmentation's conversions of the authors': mscan_t_20230227-119e8c9f.pth,
mscan_s_20230227-f33ccdf2.pth, mscan_b_20230227-3ab7d230.pth, mscan_l_20230227-cef260d4.pth; the authors' own
(mscan_t.pth, ...) are read as well. Scales and flip: `eval.py --workdir=...
--config.eval.scales=0.5,0.75,1,1.25,1.5,1.75 --config.eval.flip`. BatchNorm sees the 16 images of a step on
any number of devices, which mmsegmentation found this network to need.
"""

from configs import common
from jaxseg.config import model_config

_SIZES = ("tiny", "small", "base", "large")
_ABLATIONS = {
  "branch7": ("encoder", "branches", (7,)),
  "branch11": ("encoder", "branches", (11,)),
  "branch21": ("encoder", "branches", (21,)),
  "no_mix": ("encoder", "mix", False),
  "no_gate": ("encoder", "gate", False),
  "large_kernel": ("encoder", "attention", "large_kernel"),
  "nonlocal": ("decoder", "middle", "nonlocal"),
  "criss_cross": ("decoder", "middle", "criss_cross"),
  "ema": ("decoder", "middle", "ema"),
  "no_context": ("decoder", "middle", "none"),
  "last_stage": ("decoder", "stages", ("stage4",)),
  "stage1": ("decoder", "stages", ("stage1", "stage2", "stage3", "stage4")),
}
WORDS = (*_SIZES, "mmseg", *_ABLATIONS)


def get_config(arg: str = ""):
  """`:tiny`, `small`, `base` or `large`; `mmseg`; the ablations above."""
  config = recipe(common.arguments(arg, *WORDS))
  common.mmseg_data(config, "ade20k", resize=(2048, 512), crop=(512, 512))
  return config


def recipe(words: set[str]):
  """What SegNeXt's experiments on all data sets share; the data are the caller's."""
  config = common.base()
  mmseg = "mmseg" in words
  config.model = model_config(f"segnext_{common.one_of(words, *_SIZES)}", **common.ablated(words, _ABLATIONS))
  config.total_steps = 160_000
  config.batch_size = 16
  common.mmseg_adamw(config, names="mmseg", warmup="mmengine" if mmseg else "mmcv")
  config.eval.update(multiple=32, multiple_rule="pad" if mmseg else "resize", every_steps=8000)
  config.log.panel_every_steps = 8000
  return config
