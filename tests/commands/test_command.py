"""train.py, eval.py and jaxseg as a user runs them: exit codes, sentences, kill -9 and going on."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from jaxseg import cli
from jaxseg.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = "--config=configs/colour_only_synthetic.py:smoke"


def command(*words):
  return [sys.executable, *words]


def run(*words, devices=1):
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  env = {**os.environ, "XLA_FLAGS": flags}
  return subprocess.run(command(*words), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (["--config.optimzer.learning_rate=1"], "config has no key 'optimzer'; did you mean 'optimizer'?"),
    (["--wrkdir=x"], "there is no flag --wrkdir; did you mean '--workdir'?"),
    (
      ["--config.mesh.devices=0", "--config.batch_size=3"],
      "config.batch_size: a batch of 3 cannot be spread evenly over 2 device groups (data x fsdp)",
    ),
  ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(tmp_path, words, sentence):
  done = run("train.py", TINY, f"--workdir={tmp_path / 'run'}", *words, devices=2)
  assert done.returncode == 2
  assert sentence in done.stderr and "Traceback" not in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not (tmp_path / "run").exists()


def test_kill_9_at_any_moment_and_resume(tmp_path):
  words = (
    "train.py", TINY, "--config.total_steps=30", "--config.checkpoint.every_steps=4",
    "--config.eval.every_steps=10", "--config.log.panel_every_steps=0",
  )  # fmt: skip
  done = run(*words, f"--workdir={tmp_path / 'whole'}")
  assert done.returncode == 0, done.stderr
  killed = tmp_path / "killed"
  rng = random.Random()
  # More of them, on one process and on two, are in tests/train/test_preemption.py.
  kill_when(command(*words, f"--workdir={killed}"), killed / "metrics.jsonl", 13, rng.random() * 0.05)
  done = run(*words, f"--workdir={killed}")
  assert done.returncode == 0, done.stderr
  assert ", from step " in done.stdout, "it went on, and did not start again"

  lines = lines_of(killed)
  assert [line["step"] for line in lines] == list(range(1, 31)), "each step appears once"
  assert lines == lines_of(tmp_path / "whole")
  names = {path.name for path in (killed / "checkpoints").iterdir()} - {"deleted"}
  with Checkpoints(killed / "checkpoints") as checkpoints:
    assert names == {str(step) for step in checkpoints.steps()}, "unfinished saves are removed"


def kill_when(words, log, steps, delay):
  """Starts `words`, waits for `steps` lines in `log`, and a moment more, and kills."""
  process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  deadline = time.monotonic() + 240
  while not (log.exists() and log.read_bytes().count(b"\n") >= steps):
    assert process.poll() is None, process.stderr.read().decode()
    assert time.monotonic() < deadline
    time.sleep(0.002)
  time.sleep(delay)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  process.stderr.close()
  assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"


def lines_of(directory):
  return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_eval_explains_what_it_needs(tmp_path):
  done = run("eval.py", f"--workdir={tmp_path}")
  assert done.returncode == 2 and "is no workdir of train.py: it has no config.json" in done.stderr
  done = run("eval.py")
  assert done.returncode == 2 and "give either --workdir=DIR or --source=FILE" in done.stderr


def test_list_and_info(capsys):
  cli.main(["list"])
  assert "cgnet_m3n21 " in capsys.readouterr().out
  cli.main(["info", "cgnet_m3n21", "--params"])
  out = capsys.readouterr().out
  assert "496,306 parameters for 19 classes" in out
  assert "num_blocks = (3, 21)" in out and "use_bias = False" in out
  assert "decoder/classifier/kernel " in out and " 1x1x256x19" in out
  cli.main(["info", str(ROOT / "configs" / "cgnet_m3n21_camvid.py"), "--params", "--layout=mmseg"])
  out = capsys.readouterr().out
  assert "494,258 parameters for 11 classes" in out
  line = next(line for line in out.splitlines() if "decoder/classifier/kernel" in line)
  assert line.split() == [
    "decoder/classifier/kernel", "1x1x256x11", "decode_head.conv_seg.weight", "rate", "x1", "decay", "0.0005",
  ]  # fmt: skip
  with pytest.raises(SystemExit) as stopped:
    cli.main(["info", "cgnt"])
  assert stopped.value.code == 2
  assert "did you mean 'cgnet_m3n21'?" in capsys.readouterr().err
