"""configs/finetune.py: what the folder and the weights tell, a run of it, and every way to get it wrong."""

import pathlib

import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import data, hub
from jaxseg.data import DataError
from jaxseg.errors import UserError
from jaxseg.pretrained import tree
from jaxseg.train import loop
from jaxseg.train.experiment import build_experiment
from jaxseg.types import Preprocess
from tests.configs.test_configs import load
from tests.hub.small import TINY, init, same

PREPROCESS = Preprocess((72.5, 83.25, 73.75), (1.0, 1.0, 2.0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A small CGNet of five classes, as `save_pretrained` writes it."""
  model, variables = init()
  names = tuple(f"old{i}" for i in range(5))
  palette = np.arange(15, dtype=np.uint8).reshape(5, 3)
  fields = {"num_classes": 5, "encoder": TINY | {"dtype": "float32"}}
  net = hub.Net(model, variables, PREPROCESS, names, palette, arch="cgnet_m3n21", fields=fields)
  folder = tmp_path_factory.mktemp("weights")
  net.save_pretrained(folder)
  return folder


def make_folder(root: pathlib.Path, *, ids=(0, 1, 2, 255), count=8) -> pathlib.Path:
  rng = np.random.default_rng(0)
  for kind in ("images", "masks"):
    (root / kind).mkdir(parents=True)
  for i in range(count):
    Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(root / "images" / f"{i}.png")
    mask = rng.choice(np.asarray(ids), (5, 7)).repeat(8, 0).repeat(8, 1)
    Image.fromarray(mask.astype(np.uint8 if max(ids) < 256 else np.uint16)).save(root / "masks" / f"{i}.png")
  return root


def finetune(arg, weights, folder, *more):
  return load(f"finetune:{arg}", f"init_from={weights}", f"data.dir={folder}", *more)


def test_classes_are_the_folders(weights, tmp_path):
  folder = make_folder(tmp_path / "own")
  assert finetune("cgnet_m3n21", weights, folder).data.classes == ("class0", "class1", "class2")
  mapped = "data.label_map=((0,0),(1,1),(2,255))"
  assert finetune("cgnet_m3n21", weights, folder, mapped).data.classes == ("class0", "class1")
  (folder / "classes.txt").write_text("ground\ntree\n\ncar\n")
  config = finetune("cgnet_m3n21", weights, folder)
  assert config.data.classes == ("ground", "tree", "car")
  assert len(jaxseg.data.open_split(config.data.copy_and_resolve_references(), "train")) > 0
  assert finetune("cgnet_m3n21", weights, folder, "data.classes=a,b,c").data.classes == ("a", "b", "c")


def test_a_run_keeps_its_best_weights(weights, tmp_path):
  folder = make_folder(tmp_path / "own")
  small = ("total_steps=2", "batch_size=2", "eval.batch_size=1", "data.crop_size=32,32")
  rest = (f"data.data_dir={tmp_path / 'prepared'}", "data.workers=0", "log.panel_every_steps=0")
  config = finetune("cgnet_m3n21,frozen", weights, folder, *small, *rest)
  assert (config.preprocess.mean, config.preprocess.std) == (PREPROCESS.mean, PREPROCESS.std)
  assert (config.model.encoder.widths, config.model.encoder.dtype) == (TINY["widths"], None)
  loop.train(config, tmp_path / "run")

  best = jaxseg.from_pretrained(tmp_path / "run" / "best")
  same(best.variables, jaxseg.from_pretrained(tmp_path / "run").variables)
  assert best.classes == ("class0", "class1", "class2")
  assert best.preprocess == PREPROCESS
  before, after = tree.flat(jaxseg.from_pretrained(weights).variables), tree.flat(best.variables)
  changed = {path for path in after if not np.array_equal(before[path], after[path])}
  assert changed == {"params/decoder/classifier/kernel"}  # the encoder is frozen, statistics included


def test_what_is_missing_or_does_not_fit(weights, tmp_path):
  folder = make_folder(tmp_path / "own")
  with pytest.raises(UserError, match=r"config.data.dir is empty; give the folder"):
    load("finetune:cgnet_m3n21", f"init_from={weights}")
  with pytest.raises(UserError, match=r"config.init_from is empty; give the weights"):
    load("finetune:cgnet_m3n21", f"data.dir={folder}")
  with pytest.raises(UserError, match=r"holds cgnet_m3n21, not segformer_b0; use configs/finetune.py"):
    finetune("segformer_b0", weights, folder)
  with pytest.raises(UserError, match=r"has 3 classes \(class0, .*has 5 \(old0, .*leave config.init_keep"):
    finetune("cgnet_m3n21", weights, folder, "init_keep=()")
  with pytest.raises(UserError, match="no argument :cgnet; did you mean 'cgnet_m3n21'"):
    finetune("cgnet", weights, folder)
  with pytest.raises(DataError, match=r"nowhere/images does not exist|nowhere does not exist"):
    finetune("cgnet_m3n21", weights, tmp_path / "nowhere")
  with pytest.raises(DataError, match=r"hold the ids 0 beside 255.*\(\(0,0\),\(255,1\)\)"):
    finetune("cgnet_m3n21", weights, make_folder(tmp_path / "binary", ids=(0, 255)))
  with pytest.raises(DataError, match=r"classes are 0 to 254: map the ids with data.label_map"):
    finetune("cgnet_m3n21", weights, make_folder(tmp_path / "wide", ids=(0, 7, 1000)))


def test_smoke_needs_neither():
  config = load("finetune:segnext_tiny,frozen,smoke")
  assert (config.data.name, config.init_from, config.frozen) == ("synthetic", "", ("encoder/.*",))


def test_any_model_from_scratch_on_a_folder(tmp_path):
  folder = make_folder(tmp_path / "own")
  config = load("folder:segformer_b0", f"data.dir={folder}")
  assert (config.model.arch, config.optimizer.name) == ("segformer_b0", "adamw")
  assert config.data.classes == ("class0", "class1", "class2")
  assert load("folder:deeplabv1_vgg16", f"data.dir={folder}").optimizer.name == "sgd"
  assert load("folder:smoke").data.name == "synthetic"
  with pytest.raises(UserError, match=r"config.data.dir is empty; give the folder"):
    load("folder")
  with pytest.raises(UserError, match="no argument :segformer; "):
    load("folder:segformer", f"data.dir={folder}")


def test_class_weights_by_their_pixels(tmp_path):
  folder = make_folder(tmp_path / "own")
  where = (f"data.dir={folder}", f"data.data_dir={tmp_path / 'prepared'}", "data.crop_size=32,32")
  small = ("model.encoder.num_blocks=1,1", "batch_size=2", "data.workers=0")
  experiment = build_experiment(load("folder", *where, *small, "loss.class_weights=auto"))
  source = experiment.sources["train"]
  expected = data.class_weights(data.label_histogram(source, num_classes=3))
  np.testing.assert_allclose(experiment.config.loss.class_weights, expected, rtol=1e-6)
  with pytest.raises(UserError, match=r"class_weights expects any number of numbers.*auto"):
    load("folder", *where, "loss.class_weights=automatic")
