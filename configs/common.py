"""Presets that every config starts from, and the arguments after the colon.

`base()` holds every key that `train.py` knows, with the values that most experiments
share; an experiment's file then reads as what is particular to it.
"""

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict

from jaxseg.config.values import nearest
from jaxseg.crf import Settings
from jaxseg.errors import UserError

# Mean colour and contrast of ImageNet, RGB in 0..255: what published encoders were trained with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def arguments(arg: str, *known: str) -> set[str]:
  """The comma-separated words of `file.py:word,word`, each of which must be in `known`.

  `smoke`, which shrinks any config, is taken out before a config sees its argument.
  """
  words = {word.strip() for word in arg.split(",") if word.strip()}
  for word in sorted(words - set(known)):
    raise UserError(f"this config has no argument :{word}{nearest(word, [*known, 'smoke'])}")
  return words


def one_of(words: set[str], *known: str) -> str:
  """The one of `known` that is among a config's arguments; the first of `known` where none is."""
  chosen = [word for word in known if word in words]
  if len(chosen) > 1:
    raise UserError(f"this config takes one of :{', :'.join(chosen)}, not all of them")
  return chosen[0] if chosen else known[0]


def ablated(words: set[str], table: dict[str, tuple[str, str, Any]]) -> dict[str, dict[str, Any]]:
  """{"encoder": fields, "decoder": fields} that ablations change, by a table word → (part, field, value)."""
  changes, said = {"encoder": {}, "decoder": {}}, {}
  for word in sorted(words & set(table)):
    part, field, value = table[word]
    if field in changes[part]:
      raise UserError(
        f"this config takes one of :{said[part, field]} and :{word}, which change the same part"
      )
    changes[part][field], said[part, field] = value, word
  return changes


def mmseg_data(
  config: ml_collections.ConfigDict, name: str, *, resize: tuple[int, int], crop: tuple[int, int]
) -> None:
  """Data and evaluation as mmsegmentation's configs have them, and those written for it: whole pictures.

  Args:
    config: changed in place.
    name: of the data set.
    resize: (long, short) into which a picture is fitted, in training before the random scale.
    crop: height, width.
  """
  config.data.update(name=name, resize=resize, crop_size=crop, cat_max_ratio=0.75, color="photometric")
  config.eval.resize = resize


def mmseg_adamw(config: ml_collections.ConfigDict, *, names: str, warmup: str) -> None:
  """Loss, optimizer and schedule of SegFormer, which SegNeXt has taken over.

  Args:
    config: changed in place.
    names: the layout whose parameter names the groups match.
    warmup: "mmcv", as in the official repositories, or "mmengine", as in mmsegmentation 1.x.
  """
  config.init_keep = ("decoder/.*",)  # init_from is an encoder trained on ImageNet
  config.loss.normalize_by = "all"
  config.optimizer.update(name="adamw", learning_rate=6e-5, weight_decay=0.01, names=names)
  # mmcv's custom_keys in the order in which it tries them, the longest first; without "pos_block", which is
  # in the name of no parameter of either. What the layout has no name
  # for, such as parts of an ablation, goes by ours.
  config.optimizer.groups = (("head|^decoder/", 10.0, 1.0), ("norm", 1.0, 0.0))
  config.optimizer.schedule.update(
    name="poly", power=1.0, warmup=warmup, warmup_steps=1500, warmup_ratio=1e-6
  )


def base() -> ml_collections.ConfigDict:
  """Every key, with its usual value."""
  config = ml_collections.ConfigDict()
  config.task = "segmentation"  # or "classification", as configs/pretrain.py has it
  config.seed = 0
  config.total_steps = 1000
  config.batch_size = 8  # images a step, over all devices and micro-batches
  config.accumulate = 1  # micro-batches that a step takes one after the other, for their mean gradient
  config.ema_decay = (
    0.0  # of a moving average of the parameters, which is then evaluated and kept; 0 for none
  )
  config.dtype = "float32"  # of the computation; parameters, losses and statistics are float32
  config.init_from = ""  # weights to start from: anything that jaxseg.load_pretrained reads
  config.init_keep = ("decoder/classifier/.*",)  # what keeps its fresh values then
  config.init_adapt_channels = False  # whether weights of three channels are brought to data.channels
  config.frozen = ()  # regexes of parameters that stay, and of BatchNorms that keep their statistics

  config.data = data()
  config.preprocess = ml_collections.ConfigDict(
    dict(mean=IMAGENET_MEAN, std=IMAGENET_STD, channel_order="rgb")
  )
  config.optimizer = optimizer()
  # Follows an override of total_steps, and can be overridden itself.
  config.optimizer.schedule.total_steps = config.get_oneway_ref("total_steps")
  config.loss = ml_collections.ConfigDict(
    dict(
      # Or "ohem_cross_entropy", "dice", "focal", "lovasz", or a sum: "cross_entropy+dice".
      # "binary_cross_entropy", "dice" and "focal" are those for data.multi_label.
      name="cross_entropy",
      factors=(),  # one for each loss of a sum; () is 1 each
      normalize_by="valid",  # or "all", "weights"
      class_weights=(),  # or one a class, or "auto": 1 / ln(1.10 + share of the training pixels)
      ignore_label=255,
      label_smoothing=0.0,
      thresh=0.7,  # ohem_cross_entropy, like the next
      min_kept=100_000,
      smooth=1.0,  # dice, like the next two
      exponent=2.0,
      per_class=True,
      gamma=2.0,  # focal, like the next two
      alpha=0.5,
      activation="sigmoid",  # or "softmax"
      classes="present",  # lovasz, like the next; or "all"
      per_image=False,
      weights=dict(logits=1.0),
      # Of the resize from the logits to the labels; None takes the decoder's own.
      align_corners=config_dict.placeholder(bool),
      label_resize="logits_up",  # or "labels_nearest": labels shrink to the logits instead
    )
  )
  # every_steps=0 means only at the end of the run; the rest is how a picture reaches the network.
  config.eval = ml_collections.ConfigDict(
    dict(
      every_steps=0,
      batch_size=8,
      mode="whole",  # or "slide": windows of crop_size (height, width), every stride pixels
      crop_size=(0, 0),
      stride=(0, 0),
      resize=(),  # or (long, short): the picture is scaled to fit both, keeping its aspect
      multiple=0,  # or what the sides of the network's input must divide by, such as 32
      multiple_rule="pad",  # zeros below and right; or "resize"
      scales=(1.0,),  # several are averaged
      flip=False,  # adds the mirrored picture
      threshold=0.5,  # data.multi_label: probability from which on a pixel has a class
      # "auto" pads the evaluations in the course of training to at most eight input sizes; the last one, and
      # eval.py, are exact. "exact" never pads.
      canvases="auto",
      # Counts boundaries, calibration, loss and every image beside the confusion matrix, for report.html.
      details=True,
      report_images=12,
      # Which classes a mean leaves out: those in neither truth nor prediction ("mmsegmentation"), or every
      # class without a hit ("cgnet", the evaluation of that paper's code).
      absent_classes="mmsegmentation",
      # (class of the model, class of the data) pairs, where weights of other classes are scored.
      class_map=(),
      # Behind the network where eval.py is given --crf: w1, sxy, srgb; w2, smooth; steps, method.
      crf=dataclasses.asdict(Settings()),
    )
  )
  # save_pretrained writes the best weights to WORKDIR/best, a folder that jaxseg.from_pretrained reads.
  config.checkpoint = ml_collections.ConfigDict(dict(every_steps=1000, keep_last=3, save_pretrained=True))
  # Ends a run after so many evaluations without a better score; 0 never does.
  config.early_stopping = ml_collections.ConfigDict(dict(patience=0))
  # panel_every_steps=0 draws none; otherwise one at the end too.
  config.log = ml_collections.ConfigDict(
    dict(every_steps=10, panel_every_steps=0, panel_images=4, trackers=(), project="jaxseg")
  )
  # data=-1: what fsdp and spatial leave. devices=0: all of them.
  config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, spatial=1, devices=0))
  # Of a job of several processes (docs/launch.md), all in seconds.
  config.hosts = ml_collections.ConfigDict(
    dict(
      initialization_timeout_seconds=120.0,  # in which all of them have to come
      heartbeat_timeout_seconds=20.0,  # without a sign of life, after which one counts as gone
      # Without a finished step, from the first on and beside evaluations and saves; then the program ends
      # with the stacks of its threads, to be started again. 0 waits for ever.
      step_timeout_seconds=1800.0,
    )
  )
  config.profile_steps = ()  # (first, last): a profiler's trace of these steps, in WORKDIR/profile
  # Folder (gs:// too) of compiled programs, which a next run need not compile: "" is what
  # JAX_COMPILATION_CACHE_DIR says, or ~/.cache/jaxseg/compiled; "off" keeps none.
  config.compilation_cache = ""
  return config


def data() -> ml_collections.ConfigDict:
  """Where examples come from and how training changes them."""
  return ml_collections.ConfigDict(
    dict(
      name="synthetic",
      data_dir="",  # prepared data; empty is ~/.cache/jaxseg
      manual_dir="",  # the data set as its authors distribute it
      train_split="train",
      eval_split="val",
      crop_size=(256, 256),  # height, width
      resize=(),  # or (long, short): the picture is scaled to fit both, keeping its aspect
      scale_range=(0.5, 2.0),  # random factor, of `resize` where that is set
      scale_step=0.0,  # 0 draws any scale
      cat_max_ratio=1.0,  # largest share of a crop's labelled pixels that one class may have; 1 allows any
      flip=0.5,
      flip_vertical=0.0,
      rotate=0.0,  # degrees to either side
      blur=0.0,
      extra="",  # or module:name, a transform of your own, of Albumentations or of Grain
      pad="after_flip",  # or "before_flip": the padding is mirrored with the crop
      color="none",  # or "photometric"
      workers=-1,  # worker processes that make batches: -1 is one a core, 0 none
      classes=(),  # folder, synthetic: names of the classes, in the order of their ids
      label_map=(),  # folder: (id in the mask, class id) pairs; 255 ignores
      columns=(),  # tfds:, hf: (image, mask), where they have unusual names
      multi_label=False,  # folder: a pixel may have several classes or none; with one class, object or not
      mask_suffix="",  # folder: of a mask's name after its image's, such as _mask
      value_range=(),  # folder: (low, high) that become 0 and 255 in images of more than 8 bits
      channels=3,  # folder: of the images; preprocess.mean and std have as many values
      image_size=(96, 96),  # synthetic, like the next two
      num_train=2000,
      num_val=100,
    )
  )


def optimizer() -> ml_collections.ConfigDict:
  """Adam at a constant rate, for a config to change."""
  return ml_collections.ConfigDict(
    dict(
      name="adam",  # L2 in the gradient, as torch.optim.Adam; "adamw" decouples it; "sgd"
      learning_rate=1e-3,
      weight_decay=0.0,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      momentum=0.9,  # sgd, like the next
      nesterov=False,
      grad_clip=0.0,  # largest global norm; 0 does not clip
      names="jaxseg",  # whose parameter names the groups match: ours, or a published layout's
      groups=(),  # (regular expression, learning-rate factor, weight-decay factor); first match wins
      schedule=dict(
        name="constant",
        power=1.0,
        end_value=0.0,
        total_steps=1,
        boundaries=(),
        factor=0.1,
        every=1,  # steps between changes of the rate
        warmup="mmcv",  # or "mmengine", "timm"
        warmup_steps=0,
        warmup_ratio=0.0,
      ),
    )
  )
