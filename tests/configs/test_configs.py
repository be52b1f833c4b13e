"""Every config: it is a lab note, its full model has its published size, and `:smoke` trains two steps."""

import pathlib

import jax
import numpy as np
import pytest

from jaxseg import data
from jaxseg.train import config as config_lib
from jaxseg.train import loop, validate
from jaxseg.train.logging import read_metrics

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
# Parameters at full size. CGNet: facts of the paper's table, 256 for each class more or less.
PARAMETERS = {
  "cgnet_m3n21_camvid": 494_258,
  "cgnet_m3n21_camvid:cpu": 494_258,
  "cgnet_m3n21_folder": 496_306 - 17 * 256,
  "cgnet_m3n21_synthetic": 496_306 - 11 * 256,
  # DeepLab: facts of the papers for 21 classes, 257 for each class more or less; the counts of
  # mmsegmentation's own models, with their auxiliary heads.
  "deeplab_mmseg": 68_113_030,
  "deeplab_mmseg:v3plus": 43_589_878,
  "deeplabv1_voc": 20_505_429,
  "deeplabv2_voc": 44_048_532,
  "deeplabv2_voc:vgg16": 37_877_652,
  "deeplabv3:cityscapes": 58_040_661 - 2 * 257,
  "deeplabv3plus": 41_055_413,
  "colour_only_synthetic": 3 * 24 + 24 * 24 + 4 * 24 + 24 * 8 + 8,
}


def load(name):
  stem, _, arg = name.partition(":")
  return config_lib.load(f"{FOLDER / stem}.py:{arg}")


def test_every_config_has_its_number():
  assert {name.partition(":")[0] for name in PARAMETERS} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_header_is_a_lab_note(name):
  header = (FOLDER / f"{name}.py").read_text().split('"""')[1]
  assert f"python train.py --config=configs/{name}.py" in header
  assert "mIoU" in header


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_full_model_has_its_size(name):
  config = load(name)
  validate.validate(config)
  num_classes = validate.validate_classes(config, data.dataset_info(config.data).classes)
  model = config_lib.build_model(config, num_classes)
  image = np.zeros((1, *config.data.crop_size, 3), np.float32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])) == PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke_trains_two_steps(name, tmp_path):
  config = load(f"{name}:smoke")
  report = loop.train(config, tmp_path)
  lines = read_metrics(tmp_path)
  assert [line["step"] for line in lines] == [1, 2]
  assert lines[0]["loss"] != lines[1]["loss"]
  labels = [data.open_split(config.data, "val")[i]["label"] for i in range(3)]
  assert report.matrix.sum() == sum(int((label != 255).sum()) for label in labels)
