"""Pretraining: the recipe's numbers, batches, resume, scores, and the way to segmentation."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg import config as config_lib
from jaxseg import data
from jaxseg.checkpoint import restore_variables
from jaxseg.commands import evaluate, target
from jaxseg.config import record, validate
from jaxseg.crf import Settings
from jaxseg.data import DataError
from jaxseg.errors import UserError
from jaxseg.losses import soft_cross_entropy
from jaxseg.train import classification, loop, results
from jaxseg.train.experiment import assemble, make_mesh
from jaxseg.train.metrics import read_metrics
from jaxseg.train.optimizer import parameter_groups

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def load(arg="", *changes):
  spec = f"{CONFIGS / 'pretrain.py'}:{arg}"
  return config_lib.load(spec, overrides=[tuple(c.split("=", 1)) for c in changes])


def tiny(*changes):
  """The recipe on an encoder that compiles in a blink, for eight classes."""
  config = load("smoke")
  with config.unlocked():
    config.model = config_lib.model_config("pixelwise")
    config.data.classes = ()
    config.data.crop_size = (32, 32)
  config_lib.change(config, [tuple(c.split("=", 1)) for c in changes])
  return config


LONG = (
  "optimizer.schedule.total_steps=4", "optimizer.learning_rate=1e-2", "optimizer.schedule.warmup_steps=0",
  "eval.every_steps=2", "checkpoint.every_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """(folder, report) of a run of four steps."""
  folder = tmp_path_factory.mktemp("pretrained")
  return folder, loop.train(tiny("total_steps=4", *LONG), folder)


def test_soft_labels_cost_what_they_do_in_torch():
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 5, (6, 11)).astype(np.float32)
  target = rng.dirichlet(np.ones(11), 6).astype(np.float32)
  ours, grad = jax.value_and_grad(soft_cross_entropy)(jnp.asarray(logits), target)
  theirs = torch.tensor(logits, requires_grad=True)
  # timm's SoftTargetCrossEntropy, in torch's words.
  loss = torch.sum(-torch.tensor(target) * torch.nn.functional.log_softmax(theirs, dim=-1), dim=-1).mean()
  loss.backward()
  np.testing.assert_allclose(ours, loss.item(), rtol=1e-6)
  np.testing.assert_allclose(grad, theirs.grad.numpy(), atol=1e-7)
  assert soft_cross_entropy(logits.astype(jnp.bfloat16), target).dtype == jnp.float32


def test_the_recipe_follows_the_batch():
  config = load("")
  schedule = config.optimizer.schedule
  assert (config.batch_size, config.total_steps) == (1024, 300 * 1251)
  assert config.optimizer.learning_rate == pytest.approx(1e-3) and config.optimizer.weight_decay == 0.05
  assert (schedule.total_steps, schedule.warmup_steps, schedule.every) == (300 * 1251, 5 * 1251, 1251)
  rates = assemble(config, make_mesh(config.mesh)).learning_rates()
  # timm: an epoch's rate is that of its first step.
  assert rates[[0, 1250]] == pytest.approx(1e-6) and rates[5 * 1251] == pytest.approx(
    1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + np.cos(np.pi * 5 / 300)), rel=1e-5
  )
  half = load("mit_b1", "batch_size=512")
  assert (half.total_steps, half.optimizer.learning_rate) == (300 * 2502, pytest.approx(5e-4))
  assert half.optimizer.schedule.total_steps == half.total_steps
  rates = {name: load(name).model.encoder.drop_path_rate for name in ("mscan_tiny", "mscan_large", "mit_b5")}
  assert rates == {"mscan_tiny": 0.1, "mscan_large": 0.2, "mit_b5": 0.1}
  with pytest.raises(UserError, match="no argument :mscan_tinny; did you mean 'mscan_tiny'"):
    load("mscan_tinny")


@pytest.mark.parametrize("name", ["mscan_tiny", "mit_b0"])
def test_only_kernels_decay(name):
  config = load(name)
  model = config_lib.build_model(config, 1000)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
  groups = parameter_groups(config.optimizer, params)
  shapes = jax.tree_util.tree_flatten_with_path(params)[0]
  decays = {
    jax.tree_util.keystr(path, simple=True, separator="/"): len(leaf.shape) > 1 for path, leaf in shapes
  }
  assert {path: group.decay_mult > 0 for path, group in groups.items()} == decays
  assert all(group.lr_mult == 1 for group in groups.values())


def test_batches_are_shared_and_filled_up():
  config = tiny("data.num_train=6", "data.num_val=5")
  whole = data.classifier_train_batches(config.data, batch_size=4, seed=3, start_step=0)
  batches = list(itertools.islice(whole, 3))
  assert batches[0]["image"].shape == (4, 32, 32, 3) and batches[0]["label"].dtype == np.int32
  again = next(data.classifier_train_batches(config.data, batch_size=4, seed=3, start_step=2))
  assert np.array_equal(again["image"], batches[2]["image"])
  parts = [
    next(
      data.classifier_train_batches(
        config.data, batch_size=4, seed=3, start_step=1, process_index=i, process_count=2
      )
    )
    for i in range(2)
  ]
  assert np.array_equal(np.concatenate([p["label"] for p in parts]), batches[1]["label"])
  assert np.array_equal(np.concatenate([p["image"] for p in parts]), batches[1]["image"])
  rows = list(data.classifier_eval_batches(config.data, "val", batch_size=4))
  assert [list(b["label"] >= 0) for b in rows] == [[True] * 4, [True, False, False, False]]
  source = data.open_split(config.data, "val")
  assert [b["label"][0] for b in rows] == [source[0]["label"], source[4]["label"]]
  assert len({source[i]["label"] for i in range(5)}) > 1
  with pytest.raises(DataError, match=r"synthetic has masks, .* set data.name to"):
    config.data.name = "synthetic"
    next(data.classifier_train_batches(config.data, batch_size=4, seed=0, start_step=0))


def test_a_resumed_run_is_equal_to_the_bit(pretrained, tmp_path, capsys):
  folder, whole = pretrained
  loop.train(tiny("total_steps=2", *LONG), tmp_path)
  capsys.readouterr()
  parts = loop.train(tiny("total_steps=4", *LONG), tmp_path)
  out = capsys.readouterr().out
  assert "cross entropy with soft labels, label smoothing 0.1" in out and "mixup 0.8, cutmix 1" in out
  assert "RandAugment of 2 at 9 +- 0.5, erased 0.25" in out
  assert f"step 4: top1 {parts.accuracy(1):.4f} on val" in out
  lines = read_metrics(folder)
  assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines == read_metrics(tmp_path)
  assert len({line["loss"] for line in lines}) == 4
  assert [set(line) & {"top1", "top5"} for line in lines] == [set(), {"top1", "top5"}] * 2
  assert parts == whole and whole.images == 3
  for a, b in zip(*(jax.tree.leaves(latest(f)) for f in (folder, tmp_path)), strict=True):
    assert a.tobytes() == b.tobytes()


def latest(folder):
  return restore_variables(folder / "checkpoints", step="latest")


def test_a_run_is_evaluated_alone(pretrained, tmp_path, capsys):
  folder, report = pretrained
  config = record.read_config(folder)
  subject = target.from_workdir(folder, step="latest")
  assert evaluate.evaluate(subject, config, output=tmp_path) == report
  assert f"top1 {report.accuracy(1):.4f}" in capsys.readouterr().out
  written = json.loads((tmp_path / "report.json").read_text())
  assert (written["top1"], written["images"]) == (report.accuracy(1), 3)
  with pytest.raises(UserError, match="has no label maps; leave out --crf"):
    evaluate.evaluate(subject, config, output=tmp_path, crf=Settings())


def test_the_encoder_starts_a_segmentation_model(pretrained, tmp_path):
  folder, _ = pretrained
  given = results.read_best(folder)
  net = jaxseg.from_pretrained(folder)
  assert net.model.num_classes == 8
  changes = (
    f"init_from={folder}", "init_keep=decoder/.*", "optimizer.learning_rate=1e-9", "total_steps=1",
    "optimizer.weight_decay=0", "eval.every_steps=0",
  )  # fmt: skip
  config = config_lib.load(
    str(CONFIGS / "colour_only_synthetic.py:smoke"), overrides=[tuple(c.split("=", 1)) for c in changes]
  )
  loop.train(config, tmp_path)
  trained = latest(tmp_path)
  leaves = jax.tree_util.tree_flatten_with_path(given["params"]["encoder"])[0]
  assert leaves
  for path, leaf in leaves:
    value = trained["params"]["encoder"]
    for key in path:
      value = value[key.key]
    np.testing.assert_allclose(value, leaf, atol=1e-7)
  assert "head" not in trained["params"] and "decoder" in trained["params"]


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ("data.crop_size=224,192", r"config.data.crop_size is \(224, 192\); classifiers are trained on squares"),
    ("data.crop_area=0.5,0.2", r"config.data.crop_area is \(0.5, 0.2\); expected shares"),
    ("data.interpolation=nearest", "interpolation is 'nearest'; expected one of 'bicubic', 'bilinear'"),
    ("data.mixup_alpha=-1", r"config.data.mixup_alpha is -1.0; expected at least 0"),
    ("data.randaugment_magnitude=11", "randaugment_magnitude is 11.0; expected at least 0, at most 10"),
    ("eval.crop_share=0", "config.eval.crop_share is 0.0; expected above 0"),
    ("model.arch=segnext_tiny", "config.model.arch is 'segnext_tiny', which is no model of classification"),
    ("task=clasification", "config.task is 'clasification'; expected .*; did you mean 'classification'"),
    ("data.scale_range=1,2", "config.data has no key 'scale_range'"),
  ],
)
def test_bad_values_are_named(change, sentence):
  with pytest.raises(UserError, match=sentence):
    validate.validate(load("", change))


def test_a_segmentation_config_trains_no_encoder_alone():
  config = config_lib.load(str(CONFIGS / "colour_only_synthetic.py"), overrides=[("model.arch", "mit_b0")])
  with pytest.raises(UserError, match="is 'mit_b0', which is no model of segmentation"):
    validate.validate(config)


def test_a_step_can_be_planned():
  shapes = classification.batch_shapes(load(""), 16)
  assert shapes["image"].shape == (16, 224, 224, 3) and shapes["label"].shape == (16,)
