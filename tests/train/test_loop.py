"""The loop in process, on a model of 1x1 convolutions: resume, the NaN guard, workdirs."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import config as config_lib
from jaxseg.checkpoint import Checkpoints, restore_variables
from jaxseg.commands import evaluate, target
from jaxseg.config import record
from jaxseg.errors import UserError
from jaxseg.train import loop
from jaxseg.train.experiment import build_experiment
from jaxseg.train.loop import TrainingStopped
from jaxseg.train.metrics import MetricsLog, read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "colour_only_synthetic.py:smoke")
# The schedule of the whole run, whenever it stops.
STEPS = ("optimizer.schedule.total_steps=6", "eval.every_steps=3", "checkpoint.every_steps=2")


def load(*changes):
  return config_lib.load(TINY, overrides=[tuple(c.split("=", 1)) for c in changes])


def test_a_resumed_run_is_equal_to_the_bit(tmp_path):
  whole = loop.train(load("total_steps=6", *STEPS), tmp_path / "whole")
  assert loop.train(load("total_steps=3", *STEPS), tmp_path / "parts") is not None
  parts = loop.train(load("total_steps=6", *STEPS), tmp_path / "parts")

  lines = read_metrics(tmp_path / "whole")
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6], "each step appears once"
  assert lines == read_metrics(tmp_path / "parts")
  assert np.array_equal(whole.matrix, parts.matrix)
  assert len({line["loss"] for line in lines}) == 6, "a loss that never changes would prove nothing"
  assert [line["step"] for line in lines if "mIoU" in line] == [3, 6]
  for a, b in zip(*(jax.tree.leaves(latest(tmp_path / name)) for name in ("whole", "parts")), strict=True):
    assert a.tobytes() == b.tobytes()

  again = loop.train(load("total_steps=6", *STEPS), tmp_path / "parts")
  assert again is None, "a complete run is left alone"
  assert read_metrics(tmp_path / "parts") == lines
  with pytest.raises(UserError, match=r"at step 6, beyond config.total_steps 4"):
    loop.train(load("total_steps=4"), tmp_path / "parts")
  assert record.read(tmp_path / "parts")["config"]["total_steps"] == 6, "what was refused is not written"


def test_averages_micro_batches_and_frozen_parts_resume_to_the_bit(tmp_path, capsys):
  features = (
    "ema_decay=0.5", "accumulate=2", "frozen=encoder/(conv|norm)1/.*", "loss.name=cross_entropy+dice",
    "total_steps=4", "optimizer.schedule.total_steps=4", "eval.every_steps=2", "checkpoint.every_steps=1",
  )  # fmt: skip
  whole = loop.train(load(*features), tmp_path / "whole")
  card = " ".join(capsys.readouterr().out.split())
  assert "2 images a step (2 a device group) in 2 micro-batches" in card
  assert "frozen 3 tensors, 120 parameters" in card
  assert "average parameters' moving average, decay 0.5" in card
  assert "loss cross entropy + dice, mean over labelled pixels, smooth 1.0" in card
  loop.train(load(*features, "total_steps=2"), tmp_path / "parts")
  parts = loop.train(load(*features), tmp_path / "parts")
  assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
  assert np.array_equal(whole.matrix, parts.matrix)
  # What evaluation and `from_pretrained` read is the average, not where training stands.
  kept = latest(tmp_path / "whole")
  for a, b in zip(*(jax.tree.leaves(latest(tmp_path / name)) for name in ("whole", "parts")), strict=True):
    assert a.tobytes() == b.tobytes()
  states = [restored(load(*features), tmp_path / name) for name in ("whole", "parts")]
  assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, states), strict=True))
  params, ema = states[0].params, states[0].ema
  assert equal(kept["params"], ema)
  assert not np.array_equal(params["decoder"]["classifier"]["kernel"], ema["decoder"]["classifier"]["kernel"])
  assert equal(params["encoder"]["conv1"], ema["encoder"]["conv1"]), "frozen, so the same as its average"
  with pytest.raises(ValueError, match="is of another model or optimizer"):
    loop.train(load(*features, "ema_decay=0.0", "total_steps=5"), tmp_path / "parts")


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def restored(config, directory):
  """The train state of the latest checkpoint, as NumPy arrays."""
  run = build_experiment(config)
  with Checkpoints(directory / "checkpoints") as checkpoints:
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), run.shapes)
    return jax.tree.map(np.asarray, checkpoints.restore(like))


def test_init_from_takes_all_but_the_classifier(tmp_path):
  loop.train(load("total_steps=2", "eval.every_steps=0"), tmp_path / "source")
  given = latest(tmp_path / "source")["params"]
  other = (
    "total_steps=1",
    "eval.every_steps=0",
    "seed=7",
    "optimizer.learning_rate=1e-9",
    "optimizer.weight_decay=0",
  )
  loop.train(load(*other), tmp_path / "fresh")
  loop.train(load(*other, f"init_from={tmp_path / 'source'}"), tmp_path / "transfer")
  fresh, transfer = (latest(tmp_path / name)["params"] for name in ("fresh", "transfer"))
  np.testing.assert_allclose(
    transfer["decoder"]["classifier"]["kernel"], fresh["decoder"]["classifier"]["kernel"], atol=1e-7
  )
  assert not np.allclose(
    given["decoder"]["classifier"]["kernel"], fresh["decoder"]["classifier"]["kernel"], atol=1e-2
  )
  flat = jax.tree_util.tree_flatten_with_path(transfer)[0]
  rest = {jax.tree_util.keystr(path): x for path, x in flat if "classifier" not in jax.tree_util.keystr(path)}
  taken = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_flatten_with_path(given)[0]}
  assert rest
  for path, x in rest.items():
    np.testing.assert_allclose(x, taken[path], atol=1e-7, err_msg=path)
  with pytest.raises(ValueError, match="no-such-file"):
    loop.train(load(*other, "init_from=no-such-file.npz"), tmp_path / "none")


def latest(directory):
  return restore_variables(directory / "checkpoints", step="latest")


def test_a_workdir_rebuilds_its_model_and_evaluates_alike(tmp_path, capsys):
  report = loop.train(load("log.panel_every_steps=2"), tmp_path)
  assert "parameters" in capsys.readouterr().out, "the recipe card comes first"
  values = record.read(tmp_path)
  assert values["model"]["arch"] == "colour_only" and values["model"]["num_classes"] == 8
  assert len(values["classes"]) == len(values["palette"]) == 8
  assert set(values["preprocess"]) == {"mean", "std", "channel_order"}

  subject = target.from_workdir(tmp_path, step="latest")
  again = evaluate.evaluate(subject, record.read_config(tmp_path), output=tmp_path / "eval")
  assert np.array_equal(report.matrix, again.matrix)
  assert f"mIoU {report.miou:.4f}" in capsys.readouterr().out
  written = json.loads((tmp_path / "eval" / "report.json").read_text())
  assert written["mIoU"] == report.miou and written["images"] == 3 and len(written["classes"]) == 8
  assert (tmp_path / "eval" / "panel.png").read_bytes().startswith(b"\x89PNG")
  events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
  for tag in (b"train/loss", b"train/lr", b"eval/mIoU", b"eval/predictions", b"recipe"):
    assert tag in events
  with pytest.raises(UserError, match="--step is 'last'"):
    target.from_workdir(tmp_path, step="last")
  with pytest.raises(UserError, match="has 8 classes, but camvid has 11"):
    config = record.read_config(tmp_path)
    config.data.name = "camvid"
    evaluate.evaluate(subject, config, output=tmp_path / "other")


def test_a_workdir_of_another_model_is_refused(tmp_path):
  loop.train(load("total_steps=1"), tmp_path)
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(
    ValueError, match=r"holds the run of another model: encoder.widths \[24, 24\] \(now \[8, 8\]\)"
  ):
    loop.train(load("model.encoder.widths=8,8"), tmp_path)
  assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"cannot be written \(.*\); choose another --workdir"):
    loop.train(load(), tmp_path / "file" / "run")
  # The same of the folder of the checkpoints, and before anything is compiled.
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "checkpoints").write_text("")
  with pytest.raises(ValueError, match=r"cannot be written \(checkpoints: File exists\); choose another"):
    loop.train(load(), tmp_path / "run")


def test_batches_have_to_divide_among_devices(tmp_path):
  count = jax.device_count()
  with pytest.raises(UserError, match=rf"config.mesh.devices is {count + 1}, and there are {count}"):
    loop.train(load(f"mesh.devices={count + 1}"), tmp_path)
  with pytest.raises(
    UserError, match=r"config.accumulate is 4, .* 1 device groups share evenly; use a batch of 4"
  ):
    loop.train(load("accumulate=4"), tmp_path)
  with pytest.raises(UserError, match=r"config.mesh: .*spatial=3"):
    loop.train(load("mesh.devices=1", "mesh.spatial=3"), tmp_path)
  assert not list(tmp_path.iterdir()), "refused before anything was written"


def test_a_loss_that_is_not_finite_stops_with_step_checkpoint_and_images(tmp_path):
  blowing_up = (
    "total_steps=30", "optimizer.name=sgd", "optimizer.learning_rate=100", "checkpoint.every_steps=1",
    "eval.every_steps=0", "optimizer.schedule.name=constant", "optimizer.weight_decay=1",
  )  # fmt: skip
  with pytest.raises(TrainingStopped) as error:
    loop.train(load(*blowing_up), tmp_path)
  message = str(error.value)
  step = int(message.split("at step ")[1].split(",")[0])
  assert 2 < step <= 30
  assert message.count("train-00000") == 2, "both images of the batch"
  # What the bad step began from is not good: no later step was finite.
  assert f"last good checkpoint: step {step - 2}" in message
  lines = read_metrics(tmp_path)
  assert [line["step"] for line in lines] == list(range(1, step)), "the finite steps are in the log"
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    assert checkpoints.latest_step() == step - 2
  # The images are those of that step, not of the one that was in flight behind it.
  config = load(*blowing_up)
  from jaxseg import data

  batches = data.train_batches(config.data, batch_size=2, seed=0, start_step=step - 1)
  assert all(str(name) in message for name in next(batches)["id"])


def test_the_log_is_cut_after_the_restored_step(tmp_path):
  log = MetricsLog(tmp_path, resume_step=0)
  for step in (1, 2, 3):
    log.write(step, {"loss": 0.1 * step})
  log.write(3, {"mIoU": 0.5})
  log.flush()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 4, "lo')  # killed in mid-write
  log = MetricsLog(tmp_path, resume_step=2)
  log.write(3, {"loss": 7.0})
  log.flush()
  assert read_metrics(tmp_path) == [
    {"step": 1, "loss": 0.1},
    {"step": 2, "loss": 0.2},
    {"step": 3, "loss": 7.0},
  ]
