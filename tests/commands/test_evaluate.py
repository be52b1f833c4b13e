"""`jaxseg eval`: what is refused before the split is read, and what the report says."""

import json

import numpy as np
import pytest

from jaxseg import cli
from jaxseg.commands import evaluate
from jaxseg.evaluation.report import Report

CONFIG = "--config=colour_only_synthetic:smoke"
NAMES = "a,b,c,d,e,f,g,h"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir of two steps."""
  folder = tmp_path_factory.mktemp("run")
  cli.main(["train", CONFIG, f"--workdir={folder}", "--config.compilation_cache=off"])
  return folder


def refused(capsys, *words):
  with pytest.raises(SystemExit) as stopped:
    cli.main(["eval", *map(str, words)])
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert len(error.strip().splitlines()) == 1, error
  return error


def test_the_report_names_the_step_that_was_scored(run, tmp_path, capsys):
  for step in ("latest", "best", "2"):
    cli.main(["eval", f"--workdir={run}", f"--step={step}", f"--output={tmp_path}"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert type(report["step"]) is int and report["step"] in (1, 2)
  assert report["step"] == 2
  out = capsys.readouterr().out
  assert out.index("mIoU") < out.index("report and picture in")


def test_outputs_are_tried_before_anything_is_evaluated(run, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(evaluate, "Evaluator", None)  # calling it would be a TypeError
  (tmp_path / "file").write_text("")
  error = refused(capsys, f"--workdir={run}", f"--output={tmp_path / 'file' / 'out'}")
  assert "cannot be written" in error and "choose another --output" in error


def test_what_would_have_no_effect_or_no_place(run, capsys):
  assert "--workdir is empty" in refused(capsys, "--workdir=")
  assert "--output is empty" in refused(capsys, f"--workdir={run}", "--output=")
  error = refused(capsys, f"--workdir={run}", "--config.preprocess.mean=(0,0,0)")
  assert "config.preprocess.mean would have no effect" in error


def test_classes_under_other_names(run, tmp_path, capsys):
  words = [f"--workdir={run}", CONFIG, f"--config.data.classes={NAMES}", f"--output={tmp_path}"]
  error = refused(capsys, *words)
  assert "class 0 of" in error and "is 'plain', but synthetic calls it 'a'" in error
  cli.main(["eval", *words, "--other_class_names"])
  assert json.loads((tmp_path / "report.json").read_text())["classes"][0]["name"] == "a"


def test_nothing_labelled_is_a_sentence(run, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(
    evaluate.Evaluator, "__call__", lambda self, variables, progress: Report(np.zeros((8, 8), np.int64))
  )
  assert "has a labelled pixel" in refused(capsys, f"--workdir={run}", f"--output={tmp_path}")
  assert not (tmp_path / "report.json").exists()


def test_scores_are_printed_before_a_disk_is_full(run, tmp_path, capsys, monkeypatch):
  def full(path, data):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(evaluate, "write_report", lambda *args, **facts: full(*args[:2]))
  with pytest.raises(OSError):
    cli.main(["eval", f"--workdir={run}", f"--output={tmp_path}"])
  assert "mIoU" in capsys.readouterr().out


def test_a_run_is_run_again_from_its_record(run, tmp_path):
  cli.main(["train", f"--config={run / 'config.json'}", f"--workdir={tmp_path / 'again'}"])
  first, again = ((folder / "metrics.jsonl").read_text() for folder in (run, tmp_path / "again"))
  assert first == again and first.count("\n") == 2
