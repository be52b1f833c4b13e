"""Every key of a config beside the model's fields: its type, what its numbers may be, and a line of help.

A key that a config adds for itself (not in this table) has the type of the value that it is made with.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxseg.config.values import ANY, Range

MAX_SIDE = 65_536  # pixels
MAX_STEPS = 10**9
# Of the 64-bit seeds only the lower 32 bits reach JAX's keys: larger ones would repeat smaller ones.
MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Key:
  """One key: its annotation (`values.py`), the range of every number in it, and what it is."""

  annotation: Any
  help: str
  allowed: Range = ANY


_SHARE = Range(0.0, 1.0)
_BELOW_1 = Range(0.0, 1.0, below=True)
_POSITIVE = Range(0, 1e6, above=True)
_COUNT = Range(1, MAX_STEPS)
_COUNT_OR_0 = Range(0, MAX_STEPS)
_SIDES = tuple[int, int]
_FIT = tuple[int, int] | tuple[()]
_SIDE = Range(1, MAX_SIDE)

# The keys that every task has.
_COMMON: dict[str, Key] = {
  "task": Key(Literal["segmentation", "classification"], "what is learned"),
  "seed": Key(int, "of parameters, order of examples, augmentation and dropout", Range(0, MAX_SEED)),
  "total_steps": Key(int, "of training", _COUNT),
  "batch_size": Key(int, "images a step, over all devices and micro-batches", Range(1, MAX_SIDE)),
  "accumulate": Key(int, "micro-batches of a step, whose gradients are averaged", Range(1, MAX_SIDE)),
  "ema_decay": Key(
    float, "of a moving average of the parameters, which is evaluated; 0 keeps none", _BELOW_1
  ),
  "dtype": Key(Literal["float32", "bfloat16"], "of the computation; parameters and losses are float32"),
  "init_from": Key(str, "weights to start from: a file, a workdir, org/name on the Hugging Face hub"),
  "init_adapt_channels": Key(bool, "whether weights of three channels are brought to data.channels"),
  "init_keep": Key(tuple[str, ...], "regular expressions of parameters that keep fresh values then"),
  "frozen": Key(tuple[str, ...], "regular expressions of parameters that are not trained"),
  "profile_steps": Key(_FIT, "first and last step of a profiler's trace; () writes none", _COUNT),
  "compilation_cache": Key(str, "folder of compiled programs; '' is the usual one, off keeps none"),
  "model.arch": Key(str, "a name of jaxseg list"),
  "model.num_classes": Key(int, "0 takes the data set's", Range(0, 10**6)),
  "model.scales": Key(tuple[float, ...], "image scales whose logits are fused", Range(0.01, 16.0)),
  "model.auxiliary": Key(bool, "whether an offered auxiliary head is trained"),
  "data.name": Key(str, "the data set"),
  "data.data_dir": Key(str, "folder of prepared data; empty is ~/.cache/jaxseg"),
  "data.manual_dir": Key(str, "the data set as its authors distribute it"),
  "data.dir": Key(str, "folder of images/ and masks/"),
  "data.train_split": Key(str, "split that is trained on"),
  "data.eval_split": Key(str, "split that is evaluated"),
  "data.crop_size": Key(_SIDES, "height, width of training images", _SIDE),
  "data.flip": Key(float, "probability of a mirrored image", _SHARE),
  "data.workers": Key(
    int, "processes that read images; 0 reads in the program itself, -1 takes one a core", Range(-1, 1024)
  ),
  "data.classes": Key(tuple[str, ...], "names in the order of their ids (folder, synthetic)"),
  "data.image_size": Key(_SIDES, "of drawn images", Range(8, 8192)),
  "data.num_train": Key(int, "drawn examples", Range(1, 10**8)),
  "data.num_val": Key(int, "drawn examples", Range(1, 10**8)),
  "preprocess.mean": Key(tuple[float, ...], "subtracted, 0 to 255, one a channel", Range(-1e4, 1e4)),
  "preprocess.std": Key(tuple[float, ...], "divided by, after the mean", Range(0, 1e4, above=True)),
  "preprocess.channel_order": Key(Literal["rgb", "bgr"], "that the network sees"),
  "optimizer.name": Key(Literal["adam", "adamw", "sgd"], "adam has L2 in the gradient, adamw decouples it"),
  "optimizer.learning_rate": Key(float, "that the schedule starts from", Range(0.0, 100.0)),
  "optimizer.weight_decay": Key(float, "of parameters whose group has factor 1", Range(0.0, 10.0)),
  "optimizer.b1": Key(float, "adam's first moment", _BELOW_1),
  "optimizer.b2": Key(float, "adam's second moment", _BELOW_1),
  "optimizer.eps": Key(float, "adam's, added to the root of the second moment", Range(0.0, 1.0, above=True)),
  "optimizer.momentum": Key(float, "sgd's", _BELOW_1),
  "optimizer.nesterov": Key(bool, "sgd's momentum looks ahead"),
  "optimizer.grad_clip": Key(float, "largest global norm; 0 does not clip", Range(0.0, 1e6)),
  "optimizer.names": Key(str, "whose parameter names the groups match: jaxseg, or a published layout's"),
  "optimizer.groups": Key(
    tuple[tuple[str, float, float], ...],
    "(regular expression, learning-rate factor, weight-decay factor); first match wins",
    Range(0.0, 1e4),
  ),
  "optimizer.schedule.name": Key(Literal["constant", "poly", "cosine", "step"], "how the rate goes down"),
  "optimizer.schedule.power": Key(float, "poly's exponent", Range(0.0, 100.0, above=True)),
  "optimizer.schedule.end_value": Key(float, "rate at the end of poly and cosine", Range(0.0, 100.0)),
  "optimizer.schedule.total_steps": Key(int, "of poly and cosine; follows total_steps", _COUNT),
  "optimizer.schedule.boundaries": Key(tuple[int, ...], "steps at which `step` multiplies", _COUNT),
  "optimizer.schedule.factor": Key(float, "by which `step` multiplies", Range(0.0, 100.0, above=True)),
  "optimizer.schedule.every": Key(int, "steps between changes of the rate", _COUNT),
  "optimizer.schedule.warmup": Key(Literal["mmcv", "mmengine", "timm"], "whose form of warm-up"),
  "optimizer.schedule.warmup_steps": Key(int, "of warm-up", _COUNT_OR_0),
  "optimizer.schedule.warmup_ratio": Key(float, "share of the rate at step 0", _SHARE),
  "loss.label_smoothing": Key(float, "share of the target spread over all classes", _BELOW_1),
  "early_stopping.patience": Key(
    int, "evaluations without a better score that end a run; 0 for none", _COUNT_OR_0
  ),
  "eval.every_steps": Key(int, "0 evaluates at the end only", _COUNT_OR_0),
  "eval.batch_size": Key(int, "images evaluated at once", Range(1, MAX_SIDE)),
  "checkpoint.every_steps": Key(int, "0 saves at the end only", _COUNT_OR_0),
  "checkpoint.keep_last": Key(int, "checkpoints that are kept for resuming", Range(1, 10_000)),
  "checkpoint.save_pretrained": Key(bool, "whether the best weights go to WORKDIR/best"),
  "log.every_steps": Key(int, "steps a line", _COUNT),
  "log.panel_every_steps": Key(int, "0 draws no pictures", _COUNT_OR_0),
  "log.trackers": Key(tuple[Literal["wandb", "trackio"], ...], "beside TensorBoard, by their own libraries"),
  "log.project": Key(str, "the trackers' project"),
  "log.panel_images": Key(int, "images of a picture", Range(0, 256)),
  "mesh.data": Key(int, "parts of the batch; -1 is what the others leave", Range(-1, 10**6)),
  "mesh.fsdp": Key(int, "parts of parameters and optimizer state", Range(-1, 10**6)),
  "mesh.spatial": Key(int, "devices that share an image's rows", Range(-1, 10**6)),
  "mesh.devices": Key(int, "0 takes all", Range(0, 10**6)),
  "hosts.initialization_timeout_seconds": Key(float, "in which all hosts have to come", Range(1, 1e6)),
  "hosts.heartbeat_timeout_seconds": Key(float, "silence after which a host counts as lost", Range(1, 1e6)),
  "hosts.step_timeout_seconds": Key(float, "that no step may take; 0 waits for ever", Range(0, 1e7)),
}
_SEGMENTATION: dict[str, Key] = {
  "model.num_classes": Key(int, "0 takes the data set's; 255 is the ignore label", Range(0, 254)),
  "data.resize": Key(_FIT, "(long, short) that an image is fitted into before its random scale", _SIDE),
  "data.scale_range": Key(tuple[float, float], "of the random scale", Range(0, 100.0, above=True)),
  "data.scale_step": Key(float, "0 draws any scale", Range(0.0, 100.0)),
  "data.cat_max_ratio": Key(float, "largest share of one class in a crop", Range(0.0, 1.0, above=True)),
  "data.channels": Key(int, "of the images; preprocess.mean and std have as many values", Range(1, 512)),
  "data.multi_label": Key(
    bool, "whether a pixel may have several classes or none (folder); one class is an object or not"
  ),
  "data.flip_vertical": Key(float, "probability of an image upside down", _SHARE),
  "data.rotate": Key(float, "largest angle, in degrees to either side; 0 does not rotate", Range(0.0, 180.0)),
  "data.blur": Key(float, "probability of a Gaussian blur", _SHARE),
  "data.extra": Key(str, "module:name of a transform of your own, of Albumentations or of Grain"),
  "data.pad": Key(Literal["after_flip", "before_flip"], "when a small image is padded"),
  "data.color": Key(Literal["none", "photometric"], "distortion of colours"),
  "data.columns": Key(tuple[str, str] | tuple[()], "(image, mask) of tfds: and hf: data with unusual names"),
  "data.mask_suffix": Key(str, "of a mask's name after its image's, such as _mask (folder)"),
  "data.value_range": Key(
    tuple[float, float] | tuple[()],
    "(low, high) that become 0 and 255 in images of more than 8 bits (folder)",
    Range(0.0, 2.0**32),
  ),
  "data.label_map": Key(
    tuple[tuple[int, int], ...], "(id in the mask, class id) pairs; 255 ignores", Range(0, 65_535)
  ),
  "loss.name": Key(
    str,
    "cross_entropy, binary_cross_entropy, ohem_cross_entropy, dice, focal, lovasz, or a sum with +",
  ),
  "loss.factors": Key(tuple[float, ...], "one for each loss of a sum; () is 1 each", _POSITIVE),
  "loss.normalize_by": Key(Literal["valid", "all", "weights"], "what the sum over pixels is divided by"),
  "loss.class_weights": Key(
    tuple[float, ...] | Literal["auto"],
    "one for each class; () is none, auto counts the training split",
    Range(0.0, 1e6),
  ),
  "loss.ignore_label": Key(int, "label that no loss and no metric counts", Range(-1, 65_535)),
  "loss.thresh": Key(float, "ohem's probability below which a pixel is hard", _SHARE),
  "loss.min_kept": Key(int, "ohem's pixels an image batch that are kept at least", _COUNT_OR_0),
  "loss.smooth": Key(float, "dice's, added above and below", Range(0.0, 1e6)),
  "loss.exponent": Key(float, "dice's, of the denominator", Range(0.0, 100.0, above=True)),
  "loss.per_class": Key(bool, "dice's mean is over classes"),
  "loss.gamma": Key(float, "focal's", Range(0.0, 100.0)),
  "loss.alpha": Key(float, "focal's", _SHARE),
  "loss.activation": Key(Literal["sigmoid", "softmax"], "focal's"),
  "loss.classes": Key(Literal["present", "all"], "lovasz's mean"),
  "loss.per_image": Key(bool, "lovasz of each image"),
  "loss.align_corners": Key(bool | None, "of the resize from logits to labels; None is the decoder's own"),
  "loss.label_resize": Key(Literal["logits_up", "labels_nearest"], "which of the two is resized"),
  "eval.mode": Key(Literal["whole", "slide"], "the image at once, or in windows"),
  "eval.crop_size": Key(_SIDES, "height, width of a window", Range(0, MAX_SIDE)),
  "eval.stride": Key(_SIDES, "between windows", Range(0, MAX_SIDE)),
  "eval.resize": Key(_FIT, "(long, short) that an image is fitted into", _SIDE),
  "eval.multiple": Key(int, "0, or what the sides of the input divide by", Range(0, 4096)),
  "eval.multiple_rule": Key(Literal["pad", "resize"], "how the multiple is reached"),
  "eval.scales": Key(tuple[float, ...], "of which the probabilities are averaged", Range(0.05, 16.0)),
  "eval.flip": Key(bool, "adds the mirrored image"),
  "eval.threshold": Key(
    float, "probability from which on a pixel has a class, with data.multi_label", _BELOW_1
  ),
  "eval.canvases": Key(
    Literal["auto", "exact"], "auto pads evaluations in the course of training to at most eight input sizes"
  ),
  "eval.details": Key(bool, "also counts boundaries, calibration, loss and each image"),
  "eval.report_images": Key(int, "images that report.html shows", Range(0, 256)),
  "eval.absent_classes": Key(
    Literal["mmsegmentation", "cgnet"], "whose rule says which classes a mean over classes leaves out"
  ),
  "eval.class_map": Key(
    tuple[tuple[int, int], ...],
    "(class of the model, class of the data) pairs for weights of other classes; others are never predicted",
    Range(0, 65_535),
  ),
  "eval.crf.w1": Key(float, "weight of the appearance kernel", Range(0, 1e6)),
  "eval.crf.sxy": Key(float, "its standard deviation in pixels", _POSITIVE),
  "eval.crf.srgb": Key(float, "its standard deviation in grey levels", _POSITIVE),
  "eval.crf.w2": Key(float, "weight of the smoothness kernel", Range(0, 1e6)),
  "eval.crf.smooth": Key(float, "its standard deviation in pixels", _POSITIVE),
  "eval.crf.steps": Key(int, "updates", Range(1, 1000)),
  "eval.crf.method": Key(Literal["lattice", "exact"], "of filtering"),
}
_CLASSIFICATION: dict[str, Key] = {
  "data.crop_area": Key(tuple[float, float], "share of the image", Range(0.0, 1.0, above=True)),
  "data.crop_aspect": Key(tuple[float, float], "width over height", Range(0.01, 100.0)),
  "data.interpolation": Key(Literal["bicubic", "bilinear"], "of resizing"),
  "data.randaugment_layers": Key(int, "operations on an image; 0 does none", Range(0, 100)),
  "data.randaugment_magnitude": Key(float, "of an operation", Range(0.0, 10.0)),
  "data.randaugment_std": Key(float, "of the magnitude", Range(0.0, 100.0)),
  "data.erase_probability": Key(float, "of a rectangle of noise", _SHARE),
  "data.mixup_alpha": Key(float, "0 switches it off", Range(0.0, 1000.0)),
  "data.cutmix_alpha": Key(float, "0 switches it off", Range(0.0, 1000.0)),
  "data.switch_probability": Key(float, "of cutmix, where both are on", _SHARE),
  "eval.crop_share": Key(float, "of the short side that is seen", Range(0.0, 1.0, above=True)),
}
TASK_KEYS: Mapping[str, Mapping[str, Key]] = {
  "segmentation": _COMMON | _SEGMENTATION,
  "classification": _COMMON | _CLASSIFICATION,
}


# Keys that a config may do without.
OPTIONAL = ("data.dir", "model.auxiliary", "model.scales")
# Values of the keys that a `config.json` of an earlier version does not have.
LATER: Mapping[str, Any] = {
  "init_adapt_channels": False,
  "data.channels": 3,
  "data.columns": (),
  "data.mask_suffix": "",
  "data.multi_label": False,
  "data.value_range": (),
  "data.flip_vertical": 0.0,
  "data.rotate": 0.0,
  "data.blur": 0.0,
  "data.extra": "",
  "eval.canvases": "auto",
  "eval.threshold": 0.5,
  "eval.absent_classes": "mmsegmentation",
  "eval.class_map": (),
  "eval.details": True,
  "eval.report_images": 12,
  "log.trackers": (),
  "log.project": "jaxseg",
  "early_stopping.patience": 0,
}


def key_of(name: str, task: str) -> Key | None:
  """The entry of a dotted key; None for a key that a config added, or a field of the model.

  `loss.weights.*`, one for each supervised map of the model, are one entry.
  """
  if name.startswith("loss.weights."):
    return Key(float, "share of this map in the loss", _POSITIVE)
  return TASK_KEYS.get(task, _COMMON).get(name)
