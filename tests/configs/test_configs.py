"""Every config: it is a lab note, it loads at full size and as `:smoke`, and its step can be traced."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from jaxseg import config as config_lib
from jaxseg import data
from jaxseg.config import validate
from jaxseg.errors import UserError
from jaxseg.train.experiment import build_experiment, task_of

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
# Classes and crop at full size, as published.
DATA = {
  "cgnet_m3n21_camvid": (11, (360, 360)),
  "cgnet_m3n21_cityscapes": (19, (680, 680)),
  "cgnet_m3n21_folder": (2, (256, 256)),
  "cgnet_m3n21_synthetic": (8, (96, 96)),
  "colour_only_synthetic": (8, (96, 96)),
  "deeplab_mmseg": (19, (512, 1024)),
  "deeplabv1_voc": (21, (321, 321)),
  "deeplabv2_voc": (21, (321, 321)),
  "deeplabv3": (21, (513, 513)),
  "deeplabv3plus": (21, (513, 513)),
  "pretrain": (1000, (224, 224)),
  "segformer_ade20k": (150, (512, 512)),
  "segformer_cityscapes": (19, (1024, 1024)),
  "segformer_coco_stuff": (171, (512, 512)),
  "segformer_pascal_context": (59, (480, 480)),
  "segnext_ade20k": (150, (512, 512)),
  "segnext_cityscapes": (19, (1024, 1024)),
  "segnext_coco_stuff": (171, (512, 512)),
  "segnext_isaid": (16, (896, 896)),
  "segnext_pascal_context": (59, (480, 480)),
  "segnext_voc": (21, (512, 512)),
}
# Parameters at full size, where the config is not a system of the catalog as it is (tests/test_catalog.py).
# CGNet: a fact of the paper's table.
PARAMETERS = {
  "cgnet_m3n21_cityscapes:m3n15": 423_682,
  # DeepLab: facts of the papers for 21 classes, 257 for each class more or less; the counts of
  # mmsegmentation's own models, with their auxiliary heads.
  "deeplab_mmseg": 68_113_030,
  "deeplab_mmseg:v3plus": 43_589_878,
  "deeplabv2_voc:vgg16": 37_877_652,
  "deeplabv3:cityscapes": 58_040_661 - 2 * 257,
  "colour_only_synthetic": 3 * 24 + 24 * 24 + 4 * 24 + 24 * 8 + 8,
  # The papers' tables; SegFormer's of decoder widths has 24.7, 25.8, 29.6 and 43.4 million.
  "segnext_cityscapes": 4_229_747,
  "segformer_ade20k:b2,width1024": 29_599_062,
}
# A training step of one of each family is traced.
TRAINED = (
  "cgnet_m3n21_camvid",
  "deeplab_mmseg",
  "deeplabv2_voc",
  "segformer_ade20k",
  "segnext_cityscapes",
)


def load(name, *overrides):
  stem, _, arg = name.partition(":")
  changes = [tuple(change.split("=", 1)) for change in overrides]
  return config_lib.load(f"{FOLDER / stem}.py:{arg}", overrides=changes)


def checked(config):
  """The number of classes of a config that passes all checks."""
  validate.validate(config)
  return validate.validate_classes(config, data.dataset_info(config.data).classes)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_header_is_a_lab_note(name):
  header = (FOLDER / f"{name}.py").read_text().split('"""')[1]
  assert f"python train.py --config=configs/{name}.py" in header
  assert "Expected" in header and "mIoU" in header


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"finetune", "folder"}))
def test_it_loads_at_full_size_and_as_smoke(name):
  config = load(name)
  assert name in DATA, f"give configs/{name}.py a line of DATA: its classes and its crop"
  assert (checked(config), tuple(config.data.crop_size)) == DATA[name]
  small = load(f"{name}:smoke")
  assert checked(small) >= DATA[name][0]
  assert (small.total_steps, small.batch_size, small.data.name[:9]) == (2, 2, "synthetic")


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_full_model_has_its_size(name):
  config = load(name)
  model = config_lib.build_model(config, checked(config))
  image = np.zeros((1, *config.data.crop_size, 3), np.float32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["cgnet_m3n21_cityscapes", "segformer_ade20k", "segnext_ade20k"])
def test_each_ablation_changes_the_model_as_it_says(name):
  ablations = importlib.import_module(f"configs.{name}")._ABLATIONS
  for word, (part, field, value) in ablations.items():
    config = load(f"{name}:{word}")
    checked(config)
    assert config.model[part][field] == value, word
  published = load(name)
  same = [word for word, (part, field, value) in ablations.items() if published.model[part][field] == value]
  assert same in ([], ["width256"])  # which is B0's own


def test_what_a_size_changes():
  large = load("segnext_voc:large,finetune")
  assert large.model.arch == "segnext_large"
  assert large.model.encoder.drop_path_rate == 0.3
  assert (large.model.decoder.ham_channels, large.model.decoder.rank) == (1024, 64)
  assert (large.data.train_split, large.total_steps, large.init_keep) == ("trainval", 80_000, ())
  b5 = load("segformer_ade20k:b5")
  assert (b5.data.crop_size, b5.data.resize, b5.eval.resize) == ((640, 640), (2048, 640), (2048, 640))
  assert load("segformer_ade20k:b5,512").data.crop_size == (512, 512)
  small = load("segformer_cityscapes:512x1024")
  assert (small.eval.mode, small.eval.resize, small.batch_size) == ("whole", (1024, 512), 8)
  city = load("segnext_cityscapes")
  assert (city.eval.mode, city.eval.crop_size, city.eval.stride) == ("slide", (1024, 1024), (768, 768))
  assert load("cgnet_m3n21_cityscapes:mmseg,512x1024").batch_size == 32


def test_a_word_of_the_file_name_may_be_an_argument():
  assert load("segnext_tiny_ade20k") == load("segnext_ade20k:tiny")
  assert load("segformer_b3_cityscapes:smoke").model.arch == "segformer_b3"
  with pytest.raises(UserError, match="no argument :tinny; did you mean 'tiny'"):
    load("segnext_tinny_ade20k")
  with pytest.raises(UserError, match=r"there is no config file .*did you mean '.*cgnet_m3n21_camvid.py'"):
    load("cgnet_m3n21_camvd")


@pytest.mark.parametrize(
  ("name", "sentence"),
  [
    ("segnext_ade20k:tiny,large", "takes one of :tiny, :large, not all of them"),
    ("segnext_ade20k:ema,nonlocal", "takes one of :ema and :nonlocal, which change the same part"),
    ("segformer_ade20k:b6", "no argument :b6; it has: 512, b0, b1"),
    ("cgnet_m3n21_cityscapes:512x1024", "give :mmseg,512x1024"),
    ("cgnet_m3n21_cityscapes:mmseg,trainval", "takes one of :mmseg, :trainval"),
  ],
)
def test_words_that_do_not_go_together(name, sentence):
  with pytest.raises(UserError, match=sentence):
    load(name)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_it_is_traced(name):
  """Model, loss, optimizer and batch fit together; that such a step learns is tests/train's to show."""
  experiment = build_experiment(load(f"{name}:smoke"))
  batch = task_of(experiment.config).batch_shapes(experiment.config, experiment.config.batch_size)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state, scalars = jax.eval_shape(experiment.make_step(), experiment.shapes, batch, key)
  assert scalars["loss"].shape == () and scalars["loss"].dtype == np.float32
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), experiment.shapes
  )
