r"""Any model, from weights of your choice, on your own images/ and masks/.

  python train.py --config=configs/finetune.py:segformer_b0 \
    --config.init_from=FILE_OR_HUB --config.data.dir=FOLDER --workdir=...

The word after the colon is a model of `jaxseg.list_models()` (none means cgnet_m3n21); `:segformer_b0,frozen`
leaves the encoder, its BatchNorms' statistics included, as it is. FILE_OR_HUB is anything that
`jaxseg.from_pretrained` reads: a file, a workdir of train.py, "org/name" on the Hugging Face hub; a model of
other classes or an encoder alone. FOLDER has images/ and masks/ (docs/own_data.md).

Expected mIoU: depends on the data; nothing was published for this file.

What the command line does not say is taken from the two:
- the classes from FOLDER/classes.txt, one name a line in the order of the ids; without it "class0", "class1",
  ... up to the largest id that any mask holds;
- mean, std and channel order, and fields of the model in which published versions differ, from the weights.
All but the classifier starts from the weights (of an encoder alone, all but the decoder). The best weights so
far are kept in WORKDIR/best, a folder that `jaxseg.from_pretrained` reads.

Batch 8, crops of 512x512, scales 0.5 to 2, flip and colours; the optimizers that the models were published
with, over 4,000 steps: AdamW with 6e-5 for SegFormer and SegNeXt, Adam with 1e-3 for CGNet, SGD for DeepLab,
with 0.01 for v3 and v3+, 1e-3 for v1 and v2 on VGG16, 2.5e-4 for v2 on ResNet-101. The decoder's new part has
ten times the rate (not for CGNet).
"""

import re

from configs import common
from jaxseg import config as config_lib
from jaxseg import hub, models
from jaxseg.data import dataset_info, folder
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError

_CLASSIFIER = r"decoder/classifier\d?/.*"
# Fields of encoders that no tensor shows, and that classifiers on ImageNet have otherwise.
_CLASSIFIER_GEOMETRY = ("output_stride", "pool_size", "average_pool", "multi_grid", "contract_dilation")
# The published rates of the DeepLabs without BatchNorm, or with a frozen one.
_SMALL_RATES = {
  "deeplabv1_vgg16": 1e-3,
  "deeplabv1_msc_vgg16": 1e-3,
  "deeplabv2_vgg16": 1e-3,
  "deeplabv2_resnet101": 2.5e-4,
}


def get_config(arg: str = ""):
  """A model's name; `frozen`."""
  words = common.arguments(arg, "cgnet_m3n21", *models.SYSTEMS, "frozen")
  arch = common.one_of(words, "cgnet_m3n21", *(name for name in models.SYSTEMS if name != "cgnet_m3n21"))
  config = common.base()

  config.data.name = "folder"
  config.data.dir = ""
  config.data.manual_dir = config.data.get_oneway_ref("dir")
  config.data.classes = ("class0", "class1")  # until `finish` has looked
  config.data.crop_size = (512, 512)
  config.data.color = "photometric"

  config.model = config_lib.model_config(arch)
  config.init_keep = (_CLASSIFIER,)
  if "frozen" in words:
    config.frozen = ("encoder/.*",)

  config.total_steps = 4000
  config.optimizer.schedule.update(name="poly", power=0.9)
  # 200 of 4,000 steps; a shorter run warms up for as large a share of it.
  config.optimizer.schedule.warmup_steps = config.get_oneway_ref("total_steps") // 20
  if arch.startswith(("segformer", "segnext")):
    config.optimizer.update(name="adamw", learning_rate=6e-5, weight_decay=0.01)
    config.optimizer.groups = ((_CLASSIFIER, 10.0, 1.0), ("norm", 1.0, 0.0))
    config.optimizer.schedule.power = 1.0
  elif arch.startswith("deeplab"):
    config.optimizer.update(name="sgd", learning_rate=_SMALL_RATES.get(arch, 0.01), weight_decay=5e-4)
    config.optimizer.groups = ((_CLASSIFIER, 10.0, 1.0),)
  else:
    config.optimizer.update(name="adam", learning_rate=1e-3, weight_decay=5e-4)

  config.eval.every_steps = 400
  config.checkpoint.every_steps = 400
  config.checkpoint.save_pretrained = True
  config.log.panel_every_steps = 400
  return config


def finish(config, given: set[str]):
  """What the folder and the weights tell, where the command line (the keys `given`) does not."""
  if config.data.name.startswith("synthetic"):
    return  # nothing to look into
  if config.data.name == "folder":
    if not config.data.manual_dir:
      raise UserError(
        "config.data.dir is empty; give the folder that has images/ and masks/: --config.data.dir=FOLDER"
      )
    if "data.classes" not in given:
      config.data.classes = folder.class_names(config.data)
  if not config.init_from:
    raise UserError(
      "config.init_from is empty; give the weights to start from: --config.init_from=FILE,"
      " a workdir, or org/name on the Hugging Face hub"
    )
  net = hub.from_pretrained(config.init_from)
  _check_model(config, net)
  alone = net.arch in ENCODERS
  for part in ("encoder", "decoder"):
    for name, value in net.fields.get(part, {}).items():
      # In what precision others computed says nothing about this run, and how a classifier strides
      # nothing about a segmentation model.
      if name == "dtype" or (alone and name in _CLASSIFIER_GEOMETRY):
        continue
      if f"model.{part}.{name}" not in given and name in config.model[part]:
        config.model[part][name] = value
  if "model.scales" not in given and net.fields.get("scales"):
    config.model.scales = tuple(net.fields["scales"])
  # Rates taken from the weights are those of the weights' output stride.
  told = not alone and "model.decoder.rates" not in given
  stride = net.fields.get("encoder", {}).get("output_stride") if told else None
  config_lib.follow(config, before=stride)
  for name in ("mean", "std", "channel_order"):
    if f"preprocess.{name}" not in given and net.preprocess.channels == config.data.channels:
      config.preprocess[name] = getattr(net.preprocess, name)
  if "init_keep" not in given:
    config.init_keep = ("decoder/.*",) if alone else (_CLASSIFIER,)
    if config.model.get("auxiliary"):
      config.init_keep += ("aux_decoder/.*",)
  if alone and "optimizer.groups" not in given:  # all of the decoder is new, not only its classifier
    config.optimizer.groups = tuple(
      ("decoder/", *g[1:]) if g[0] == _CLASSIFIER else g for g in config.optimizer.groups
    )
  _check_classes(config, net)


def _check_model(config, net: hub.Net) -> None:
  arch = config.model.arch
  encoder = models.SYSTEMS[arch].encoder
  if net.arch in (arch, encoder):
    return
  fits = [name for name, system in models.SYSTEMS.items() if net.arch in (name, system.encoder)]
  use = (
    f"use configs/finetune.py:{fits[0]}" if fits else f"give weights of {arch} or of its encoder {encoder}"
  )
  raise UserError(f"config.init_from {config.init_from} holds {net.arch}, not {arch}; {use}")


def _check_classes(config, net: hub.Net) -> None:
  """A classifier that is taken over has to be one of the same classes."""
  if any(re.fullmatch(pattern, "decoder/classifier/kernel") for pattern in config.init_keep):
    return
  names = dataset_info(config.data).classes
  if len(names) != len(net.classes):
    raise UserError(
      f"config.data has {len(names)} classes ({_some(names)}), but the classifier of {config.init_from} has"
      f" {len(net.classes)} ({_some(net.classes)}); leave config.init_keep alone for a new classifier"
    )


def _some(names: tuple[str, ...]) -> str:
  return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])}, ... {names[-1]}"
