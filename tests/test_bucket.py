"""A workdir on a bucket: trained, killed, resumed, evaluated and read; and refused in a sentence."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.gcs import serve

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN = (
  "train.py", "--config=configs/colour_only_synthetic.py:smoke", "--workdir=gs://runs/a",
  "--config.total_steps=8", "--config.eval.every_steps=3", "--config.checkpoint.every_steps=1",
  "--config.checkpoint.save_pretrained=True",
)  # fmt: skip
_READ = """
import jaxseg, numpy as np, sys
from jaxseg.checkpoint import restore_variables
net = jaxseg.from_pretrained("gs://runs/a")
assert net.predict(np.zeros((64, 64, 3), np.uint8)).shape == (64, 64)
restore_variables("gs://runs/a/checkpoints", step="latest")
sys.argv = ["eval.py", "--workdir=gs://runs/a", "--output=gs://runs/a/eval"]
exec(open("eval.py").read())
"""


@pytest.fixture
def gcs():
  pytest.importorskip("gcsfs", reason="gcsfs reads gs://")
  with serve() as (bucket, environment):
    yield bucket, {**os.environ, **environment}


def run(environment, *words, timeout=600):
  done = subprocess.run(
    [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
  )
  return done


@pytest.mark.slow
def test_train_kill_resume_evaluate_and_read(gcs):
  bucket, environment = gcs
  process = subprocess.Popen(
    [sys.executable, *TRAIN], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  # Killed where a save is under way: its folder is there, and the file that ends it is not.
  deadline = time.monotonic() + 300
  while not (unfinished(bucket) and finished(bucket) and max(finished(bucket)) >= 2):
    assert process.poll() is None, process.stderr.read().decode()
    assert time.monotonic() < deadline
    time.sleep(0.001)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  half, last = unfinished(bucket), max(finished(bucket))
  # A checkpoint that was half deleted: its last file is there, its arrays are not.
  lost = [name for name in bucket.names(f"a/checkpoints/{last}/variables/") if "/d/" in name]
  assert half and lost
  for name in lost:
    del bucket.objects[name]

  done = run(environment, *TRAIN)
  assert done.returncode == 0, done.stderr
  assert f"gs://runs/a/checkpoints these checkpoints are damaged: {last} (" in done.stderr
  assert re.search(r", from step \d+", done.stdout)
  assert bucket.names(f"a/damaged_checkpoints/{last}/commit_success.txt"), "moved aside and not deleted"
  assert set(finished(bucket)) == {6, 7, 8} and not unfinished(bucket)
  lines = [json.loads(line) for line in bucket.objects["a/metrics.jsonl"][0].splitlines()]
  assert [line["step"] for line in lines] == list(range(1, 9))
  assert [line["step"] for line in lines if "mIoU" in line] == [3, 6, 8]
  assert {"a/best/model.safetensors", "a/best/config.json", "a/config.json"} <= set(bucket.names())
  assert bucket.names("a/tensorboard/") and not [name for name in bucket.names() if name.endswith(".part")]

  done = run(environment, "-c", _READ)
  assert done.returncode == 0, done.stderr
  report = json.loads(bucket.objects["a/eval/report.json"][0])
  assert report["mIoU"] == max(line.get("mIoU", 0) for line in lines)


def finished(bucket):
  return sorted({int(name.split("/")[2]) for name in bucket.names("a/checkpoints/") if committed(name)})


def unfinished(bucket):
  started = {name.split("/")[2] for name in bucket.names("a/checkpoints/")}
  return {int(name) for name in started if name.isdigit()} - set(finished(bucket))


def committed(name):
  return name.count("/") == 3 and name.endswith("/commit_success.txt")


@pytest.mark.parametrize(
  ("where", "status", "sentence"),
  [
    ("gs://runs/b", 403, "gs://runs cannot be read (Forbidden"),
    ("gs://nowhere/b", 0, "gs://nowhere cannot be read ("),
  ],
)
def test_a_bucket_that_cannot_be_read(gcs, where, status, sentence):
  bucket, environment = gcs
  bucket.refuse = status
  began = time.monotonic()
  done = run(environment, *TRAIN[:2], f"--workdir={where}")
  assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr
  assert "check its name, and the credentials" in done.stderr
  assert time.monotonic() - began < 240
