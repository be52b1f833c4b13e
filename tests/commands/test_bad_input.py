"""Every command answers bad input with one sentence and exit code 2, and leaves nothing behind."""

import cv2
import numpy as np
import pytest

from jaxseg import cli
from jaxseg.commands import COMMANDS

SMOKE = "--config=colour_only_synthetic:smoke"
PREDICT = ["a.png", "--source=no.npz"]
# Words of each command → what the sentence has to say.
BAD = {
  "list": [(["x"], "there is no flag x"), (["--config.seed=1"], "jaxseg list: the command takes no")],
  "info": [
    ([], "the following arguments are required: model"),
    (["cgnet"], "did you mean 'cgnet_m3n21'"),
    (["cgnet_m3n21", "--size=0x0"], "--size is '0x0'; expected HxW of 32 to 65,536 pixels"),
    (["cgnet_m3n21", "--num_classes=0"], "--num_classes is 0; expected at least 1"),
    (["empty"], "'empty' is no workdir of train.py"),
  ],
  "config": [([], "required: --config"), (["--config=no.py"], "there is no config file 'no.py'")],
  "plan": [
    (["--config=colour_only_synthetic:smoke"], "required: --topology"),
    ([SMOKE, "--topology=v99-8"], "v99"),
  ],
  "check-dataset": [([], "required: --config"), ([SMOKE, "--split=no"], "has no split 'no'")],
  "prepare-dataset": [([], "required: --config"), ([SMOKE, "--config.data.nme=x"], "has no key 'nme'")],
  "train": [
    ([], "--config is missing"),
    ([SMOKE, "--workdir=a.png"], "workdir 'a.png' cannot be written"),
    ([SMOKE, "--workdir=w", "--config.log.trackers=nope"], "log.trackers"),
  ],
  "eval": [
    ([], "give either --workdir=DIR or --source=FILE"),
    (["--workdir=empty"], "is no workdir of train.py"),
    (["--source=no.npz"], "--source needs --config=FILE"),
    (["--source=no.npz", SMOKE], "there is no file 'no.npz'"),
    (["--source=no.npz", SMOKE, "--config.eval.class_map=3"], "expects any number of groups of 2 ints"),
  ],
  "predict": [
    (["a.png"], "required: --source"),
    (PREDICT, "there is no file 'no.npz'"),
    (["nowhere.jpg", *PREDICT], "there is no file or folder 'nowhere.jpg'"),
    ([*PREDICT, "--opacity=nan"], "--opacity is nan"),
    ([*PREDICT, "--mode=slide", "--crop_size=8x8"], "--crop_size is '8x8'"),
    ([*PREDICT, "--output=a.png/x"], "'a.png/x' cannot be written"),
  ],
  "throughput": [
    (["empty"], "holds no weights"),
    (["colour_only", "--batch_sizes=1.5"], "--batch_sizes is '1.5'; expected whole numbers"),
    (["colour_only", "--seconds=nan"], "--seconds is nan"),
    (["colour_only", "--output=a.png"], "'a.png' cannot be written"),
  ],
  "explain": [
    (["colour_only", "no"], "'no' is no model and no file"),
    (["colour_only", "--at="], "colour_only has no ''"),
    (["colour_only", "--images=empty"], "there is no image or video in empty"),
  ],
  "robustness": [
    (["no.npz"], "give --config=FILE"),
    (["no.npz", SMOKE, "--sizes="], "--sizes is ''"),
    (["no.npz", SMOKE, "--split=no"], "has no split 'no'"),
  ],
  "compare": [
    (["empty"], "give two runs or more"),
    (["empty", "a.png"], "'empty' is no run"),
    (["empty", "w", "--latency="], "--latency is ''"),
  ],
  "export": [
    (["no.npz"], "required: --to, --output"),
    (["no.npz", "--to=onnx", "--output=x.onnx"], "no.npz"),
  ],
  "crf-search": [([], "give either --workdir=DIR or --source=FILE")],
}


def test_every_command_is_tried():
  assert set(BAD) == set(COMMANDS)


@pytest.mark.parametrize(
  ("command", "words", "sentence"),
  [(command, words, sentence) for command, cases in BAD.items() for words, sentence in cases],
  ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_one_sentence(command, words, sentence, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  cv2.imwrite("a.png", np.zeros((40, 40, 3), np.uint8))
  with pytest.raises(SystemExit) as stopped:
    cli.main([command, *words])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and sentence in error, error
  assert len(error.strip().splitlines()) == 1 and error.startswith("jaxseg"), error
  left = {path.name for path in tmp_path.iterdir()} - {"empty", "a.png"}
  assert left <= {"runs"}, "nothing was begun"
