"""A checkpoint that one process of a job cannot write: all end with a sentence, and nothing is lost."""

import json
import resource
import time

import pytest

from jaxseg import config as config_lib
from jaxseg.checkpoint import Checkpoints, reading
from jaxseg.config import record
from jaxseg.train import loop, workdir
from tests.test_checkpoint import filled, finished
from tests.train.test_hosts import ROOT, ends, start

TINY = "configs/colour_only_synthetic.py:smoke"
CHANGES = {
  "total_steps": "5", "checkpoint.every_steps": "2", "eval.every_steps": "0", "log.panel_every_steps": "0",
  "compilation_cache": "off",
}  # fmt: skip

# train.py, on one process of which no file may grow beyond a few bytes from the save of a step on.
_TRAIN = """
import resource, sys
from jaxseg.checkpoint import Checkpoints
import train

save = Checkpoints.save

def save_with_a_full_disk(self, step, *args, **kwargs):
  if step == STEP and "--process_id=INDEX" in sys.argv:
    self.wait()  # what is saved before is whole
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    print("full", flush=True)
  return save(self, step, *args, **kwargs)

Checkpoints.save = save_with_a_full_disk
train.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("index", "step", "left"), [(1, 4, [2]), (0, 5, [2, 4])])
def test_the_disk_of_one_process_is_full(tmp_path, index, step, left):
  """Orbax lets all processes wait for one another then, for 20 minutes.

  The first process also writes what describes a step, and the last step's evaluation waits for its save.
  """
  run = tmp_path / "run"
  words = [f"--config.{name}={value}" for name, value in CHANGES.items()]
  words += [f"--config={TINY}", f"--workdir={run}", "--config.mesh.devices=0", "--config.mesh.fsdp=2"]
  processes = start(["-c", _TRAIN.replace("STEP", str(step)).replace("INDEX", str(index)), *words])
  try:
    while processes[index].stdout.readline() != "full\n":
      assert processes[index].poll() is None, processes[index].stderr.read()
    since = time.monotonic()
    codes, _, errors = zip(*ends(processes), strict=True)
    assert time.monotonic() - since < 30
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  assert codes == (2, 2)
  said, heard = errors[index], errors[1 - index]
  assert len(heard) == len(said) == 1
  assert said[0].startswith(
    f"train.py: a checkpoint cannot be written to {run / 'checkpoints'} by process {index} of 2"
  )
  assert said[0].endswith(
    " (File too large); make room or choose another --workdir, and the same command goes on from the last one"
  )
  assert heard[0] == said[0].replace("train.py: ", f"train.py: process {index} stopped the job: ")

  assert finished(run / "checkpoints") == left, "half a checkpoint is none"
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
  (tmp_path / record.CHECKPOINTS).mkdir()
  workdir.check_writable(tmp_path)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
  try:
    with pytest.raises(ValueError, match=r"workdir .* cannot be written \(checkpoints: File too large\)"):
      workdir.check_writable(tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not list((tmp_path / record.CHECKPOINTS).iterdir()), "the probe is removed"
