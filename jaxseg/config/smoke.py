"""What `:smoke` does: any config made small enough to run anywhere."""

import ml_collections

from jaxseg.config.keys import name_of

# Fields of encoders that say how many blocks each stage has; `:smoke` sets every entry to one.
_DEPTH_FIELDS = ("num_blocks", "depths", "stage_sizes")
_SMOKE_SIZE = 64


def shrink(config: ml_collections.ConfigDict) -> None:
  """Makes any config small enough to run anywhere, in place: what `:smoke` does.

  Crop 64, batch 2, one block a stage, two steps, one device, and synthetic data of the same class count.
  """
  from jaxseg import data

  names = data.dataset_info(config.data).classes
  with config.unlocked():
    names = (_shrink_classification if name_of(config) == "classification" else _shrink_segmentation)(
      config, names
    )
    config.model.num_classes = len(names)
    for field in _DEPTH_FIELDS:
      if field in config.model.encoder:
        config.model.encoder[field] = (1,) * len(config.model.encoder[field])
    # A ResNet has one rate for each unit of its last stage, of which one is left.
    if "stage_sizes" in config.model.encoder and "multi_grid" in config.model.encoder:
      config.model.encoder.multi_grid = config.model.encoder.multi_grid[:1]
    config.total_steps = 2
    config.batch_size = 2
    config.init_from = ""
    config.data.update(
      classes=names,
      train_split="train",
      eval_split="val",
      image_size=(_SMOKE_SIZE, _SMOKE_SIZE),
      crop_size=(_SMOKE_SIZE, _SMOKE_SIZE),
      num_train=8,
      num_val=3,  # odd, so that the last batch is padded
      workers=0,
    )
    config.optimizer.schedule.warmup_steps = min(config.optimizer.schedule.warmup_steps, 1)
    config.eval.update(every_steps=1, batch_size=2)
    config.checkpoint.every_steps = 1
    config.log.every_steps = 1
    config.mesh.update(data=-1, fsdp=1, spatial=1, devices=1)


def _shrink_segmentation(config: ml_collections.ConfigDict, names: tuple[str, ...]) -> tuple[str, ...]:
  from jaxseg.data import synthetic

  # Scenes need a few classes to draw; a config with fewer is shrunk to that many.
  names += tuple(f"extra{i}" for i in range(len(names), synthetic.MIN_CLASSES))
  if config.loss.class_weights and config.loss.class_weights != "auto":
    config.loss.class_weights += (1.0,) * (len(names) - len(config.loss.class_weights))
  config.data.update(name="synthetic", label_map=(), resize=())
  config.eval.update(resize=(), scales=(1.0,), flip=False, report_images=2)
  if config.eval.mode == "slide":
    config.eval.update(crop_size=(_SMOKE_SIZE * 3 // 4,) * 2, stride=(_SMOKE_SIZE // 2,) * 2)
  config.log.update(panel_every_steps=0, panel_images=2)
  return names


def _shrink_classification(config: ml_collections.ConfigDict, names: tuple[str, ...]) -> tuple[str, ...]:
  config.data.name = "synthetic_classes"
  # An epoch of the whole data set, after which the rate would change first.
  config.optimizer.schedule.every = 1
  return names
