"""A checkpoint that one process of a job cannot write: all end with a sentence, and nothing is lost."""

import json
import resource
import time

import pytest

from jaxseg.checkpoint import Checkpoints, reading
from jaxseg.train import config as config_lib
from jaxseg.train import loop, workdir
from tests.test_checkpoint import filled, finished
from tests.train.test_hosts import ROOT, ends, start

TINY = "configs/colour_only_synthetic.py:smoke"
CHANGES = {
  "total_steps": "5", "checkpoint.every_steps": "2", "eval.every_steps": "0", "log.panel_every_steps": "0",
  "compilation_cache": "off",
}  # fmt: skip

# train.py, on whose second process no file may grow beyond a few bytes from the save of step 4 on.
_TRAIN = """
import resource, sys
from jaxseg.checkpoint import Checkpoints
import train

save = Checkpoints.save

def save_with_a_full_disk(self, step, *args, **kwargs):
  if step == 4 and "--process_id=1" in sys.argv:
    self.wait()  # what is saved before is whole
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    print("full", flush=True)
  return save(self, step, *args, **kwargs)

Checkpoints.save = save_with_a_full_disk
train.main(sys.argv[1:])
"""


def test_the_disk_of_one_process_is_full(tmp_path):
  """Orbax lets all processes wait for one another then, for 20 minutes."""
  run = tmp_path / "run"
  words = [f"--config.{name}={value}" for name, value in CHANGES.items()]
  words += [f"--config={TINY}", f"--workdir={run}", "--config.mesh.devices=0", "--config.mesh.fsdp=2"]
  processes = start(["-c", _TRAIN, *words])
  try:
    while processes[1].stdout.readline() != "full\n":
      assert processes[1].poll() is None, processes[1].stderr.read()
    since = time.monotonic()
    (first, _, heard), (second, _, said) = ends(processes)
    assert time.monotonic() - since < 30
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  assert (first, second) == (2, 2)
  assert len(heard) == len(said) == 1
  assert said[0].startswith(
    f"train.py: a checkpoint cannot be written to {run / 'checkpoints'} by process 1 of 2"
  )
  assert said[0].endswith(
    " (File too large); make room or choose another --workdir, and the same command goes on from the last one"
  )
  assert heard[0] == said[0].replace("train.py: ", "train.py: process 1 stopped the job: ")

  assert finished(run / "checkpoints") == [2], "half a checkpoint is none"
  config = config_lib.load(str(ROOT / TINY), overrides=list(CHANGES.items()))
  assert loop.train(config, run) is not None
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  assert finished(run / "checkpoints") == [2, 4, 5]


def test_who_saves_is_told_at_once_and_without_tracebacks(tmp_path, capfd):
  told = []
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path, on_failure=told.append) as checkpoints:
    checkpoints.save(1, filled(1))
    checkpoints.wait()
    assert not told
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
      checkpoints.save(2, filled(2))
      deadline = time.monotonic() + 60
      while not told:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(ValueError, match=r"cannot be written to .* \(File too large\); make room") as raised:
      checkpoints.wait()
    assert [str(error) for error in told] == [str(raised.value)]
    assert checkpoints.steps() == [1]
  assert "Traceback" not in capfd.readouterr().err


def test_what_a_disk_may_answer(tmp_path, monkeypatch):
  """TensorStore has a code for it, whatever the words around."""
  with Checkpoints(tmp_path) as checkpoints:

    def save(*_, **__):
      raise ValueError("DATA_LOSS: Failed writing: \"/x/d/1.__lock\": what it was [os_error_code='5']")

    monkeypatch.setattr(reading.Manager, "save", save)
    with pytest.raises(
      ValueError, match=r"a checkpoint cannot be written to .* \(Input/output error\); make"
    ):
      checkpoints.save(1, filled(1))


def test_every_process_tries_the_workdir_before_it_compiles(tmp_path):
  (tmp_path / workdir.CHECKPOINTS).mkdir()
  workdir.check_writable(tmp_path)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
  try:
    with pytest.raises(ValueError, match=r"workdir .* cannot be written \(checkpoints: File too large\)"):
      workdir.check_writable(tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not list((tmp_path / workdir.CHECKPOINTS).iterdir()), "the probe is removed"
