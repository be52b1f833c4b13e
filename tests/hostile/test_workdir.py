"""What a damaged or hostile workdir does to those who read it: the right values, or one sentence.

One tiny run; each case changes one of its files, as a text editor, a full disk or an enemy would, and every
reader looks at it. JAXSEG_HOSTILE=1000 for more cases than CI has.
"""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxseg
from jaxseg import cli
from jaxseg.checkpoint import restore_variables
from jaxseg.config import record
from jaxseg.console import copied_to, print_line
from jaxseg.errors import UserError
from jaxseg.train import results
from jaxseg.train.metrics import MetricsLog, read_metrics
from tests.hostile.changes import assert_sentence, cases, damages

FILES = ("config.json", "best/config.json", "best/score.json", "metrics.jsonl", "best/model.safetensors")


def readers(workdir: pathlib.Path):
  """Everything that reads a workdir before a device is asked for anything."""
  yield lambda: record.read_config(workdir)
  yield lambda: record.is_workdir(workdir)
  yield lambda: results.step_of_best(workdir)
  yield lambda: results.read_best(workdir)
  yield lambda: restore_variables(workdir)
  yield lambda: jaxseg.from_pretrained(workdir)
  yield lambda: jaxseg.from_pretrained(workdir / "best")
  yield lambda: cli.main(["config", f"--config={workdir / 'config.json'}"])


def test_every_reader_gives_right_values_or_a_sentence(run, tmp_path, capsys):
  sound = jaxseg.from_pretrained(run)

  @cases(20)
  @given(st.sampled_from(FILES), damages())
  def case(name, change):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    for read in readers(folder):
      try:
        value = read()
      except UserError as error:
        assert_sentence(error)
        continue
      except SystemExit as stopped:  # of the command, which has printed its sentence
        assert stopped.code == 2
        continue
      if isinstance(value, jaxseg.Net) and name not in ("best/model.safetensors",):
        assert np.isfinite(value.preprocess.mean).all() and np.isfinite(value.preprocess.std).all()
        assert len(value.classes) == len(sound.classes)
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err and "Traceback" not in out.err

  case()


@pytest.mark.parametrize("value", [None, 0, "gone"])
def test_a_run_without_a_number_of_classes_is_no_encoder(run, tmp_path, value):
  """A damaged record would otherwise load the network without its classifier, and say nothing."""
  folder = tmp_path / "run"
  shutil.copytree(run, folder)
  values = json.loads((folder / "config.json").read_text())
  values["model"] |= {"num_classes": value}
  if value == "gone":
    del values["model"]["num_classes"]
  (folder / "config.json").write_text(json.dumps(values))
  with pytest.raises(UserError, match=r"model.num_classes") as error:
    jaxseg.from_pretrained(folder)
  assert_sentence(error.value)


def test_a_log_that_cannot_be_read_is_kept_aside(run, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(run, folder)
  whole = (folder / "metrics.jsonl").read_text().splitlines()
  broken = ['{"step": 2, "loss": ', "[1]", '{"step": NaN}', '{"step": 2, "loss": "<b>"}', "9" * 5000]
  killed = '{"step": 2, "lo'  # the last line may be one of a kill, and is no loss
  (folder / "metrics.jsonl").write_text("\n".join([whole[0], *broken, killed]) + "\n")
  assert read_metrics(folder) == [json.loads(whole[0])]
  MetricsLog(folder, resume_step=2)
  assert (folder / "metrics.jsonl").read_text().splitlines() == [whole[0]]
  assert (folder / "metrics.jsonl.unreadable").read_text().splitlines() == broken


def test_a_log_that_starts_again_is_kept_aside(tmp_path):
  """A run without a checkpoint begins at step 0; what it had logged stays beside the new log."""

  @cases(30)
  @given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
  def case(starts):
    for path in tmp_path.iterdir():
      path.unlink()
    written = []
    for number, steps in enumerate(starts):
      log = MetricsLog(tmp_path, resume_step=0)
      for step in range(1, steps + 1):
        log.write(step, {"loss": float(number)})
        written.append((step, float(number)))
      log.flush()
    aside = tmp_path / "metrics.jsonl.earlier"
    texts = [aside.read_text() if aside.exists() else "", (tmp_path / "metrics.jsonl").read_text()]
    lines = [json.loads(line) for line in "".join(texts).splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == written
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, starts[-1] + 1))

  case()


def test_a_copy_of_the_terminal_on_a_full_disk_is_no_reason_to_stop(tmp_path, capsys):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with copied_to(tmp_path / "log.txt"):
      print_line("one")
      resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
      print_line("two")
      raise UserError("three")
  except UserError as error:
    assert str(error) == "three"
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert capsys.readouterr().out.splitlines() == ["one", "two"]
  assert "  one\n" in (tmp_path / "log.txt").read_text()


# Two hundred arrays that cannot be written behind the program: it goes on until it asks.
_FULL = """
import resource, sys, time
from jaxseg.checkpoint import Checkpoints
from jaxseg.errors import UserError
from tests.test_checkpoint import filled

state = filled(1, layers=200)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
  with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, state)
    time.sleep(float(sys.argv[3]))
    checkpoints.check()
except UserError as error:
  sys.exit(str(error))
"""


@pytest.mark.parametrize("limit, wait", [(20_000, 0.5), (5_000, 0.5), (20_000, 0.0)])
def test_of_a_save_that_fails_behind_the_program_only_a_sentence_is_seen(tmp_path, limit, wait):
  root = pathlib.Path(__file__).parents[2]
  # Half an entry of the cache would warn whoever reads it next.
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  done = subprocess.run(
    [sys.executable, "-c", _FULL, str(tmp_path), str(limit), str(wait)],
    cwd=root, env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1 and "cannot be written" in done.stderr, done.stderr[-2000:]
  assert len(done.stderr.splitlines()) == 1, done.stderr[:2000]
