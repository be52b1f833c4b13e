"""`jaxseg compare`: the table, the page, and one sentence for what cannot be compared."""

import json
import shutil

import numpy as np
import pytest

from jaxseg import cli
from jaxseg.commands import compare


@pytest.fixture(scope="module")
def runs(smoke_run, tmp_path_factory):
  """A workdir, the same with another seed and lower scores, and an evaluation alone."""
  folder = tmp_path_factory.mktemp("runs")
  for name in "ab":
    shutil.copytree(smoke_run, folder / name)
  record = json.loads((folder / "b" / "config.json").read_text())
  record["config"]["seed"] = 1
  (folder / "b" / "config.json").write_text(json.dumps(record))
  report = json.loads((folder / "b" / "eval" / "report.json").read_text())
  report["mIoU"] /= 2
  report["image_scores"][1]["mIoU"] /= 2
  (folder / "b" / "eval" / "report.json").write_text(json.dumps(report))
  shutil.copytree(folder / "a" / "eval", folder / "alone")
  return folder


def test_table_and_page(runs, tmp_path, capsys, monkeypatch):
  capsys.readouterr()
  monkeypatch.setattr(compare, "_SECONDS", 0.01)
  cli.main(
    ["compare", str(runs / "a"), str(runs / "b"), f"--output={tmp_path}", "--images=1", "--latency=32x48"]
  )
  timed, lines = np.split(capsys.readouterr().out.splitlines(), [2])
  assert lines[0].split()[:3] == ["run", "mIoU", "mAcc"]
  assert "Peak memory" in lines[0] and "Latency, ms" in lines[0]
  reports = [json.loads((runs / name / "eval" / "report.json").read_text()) for name in "ab"]
  better = max(reports, key=lambda report: report["mIoU"])
  for line, report in zip(lines[1:3], reports, strict=True):
    star = "*" if report is better else ""
    assert line.split()[:2] == ["ab"[reports.index(report)], f"{report['mIoU']:.4f}{star}"]
  for line, name in zip(timed, "ab", strict=True):
    shown = line.removeprefix(f"{name}: ").removesuffix(" ms an image")
    assert 0 < float(shown) and shown in lines[1 + "ab".index(name)]
  page = (tmp_path / "compare.html").read_text()
  for words in (
    "mIoU against Latency, ms",
    "Latency is that of an image of 32x48 on this device",
    "Accuracy against cost",
    "Where the runs differ",
    "a, error",
    "b, error",
    '<th scope="row">seed',
  ):
    assert words in page, words
  assert page.count('<article class="example') == 1


def test_an_evaluation_alone_has_no_pictures(runs, tmp_path, capsys):
  cli.main(["compare", str(runs / "a"), str(runs / "alone"), f"--output={tmp_path}"])
  assert "Images are not shown: only workdirs have the weights" in capsys.readouterr().out


def test_runs_on_different_data_say_so(runs, tmp_path, capsys):
  report = json.loads((runs / "alone" / "report.json").read_text())
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "report.json").write_text(json.dumps(report | {"split": "<b>test</b>"}))
  cli.main(["compare", str(runs / "a"), str(tmp_path / "other"), f"--output={tmp_path}"])
  assert "different data: synthetic val, synthetic <b>test</b>" in capsys.readouterr().out
  assert "<b>test</b>" not in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (["{a}"], "give two runs or more to compare"),
    (["{a}", "{a}/"], "is given twice"),
    (["{a}", "no/such"], "run 'no/such' is no folder"),
    (["{a}", "{a}/checkpoints"], "is no run: it has neither"),
    (["{a}", "{new}"], "has not been evaluated; jaxseg eval --workdir="),
    (["{a}", "{broken}"], "it is not JSON"),
    (["{a}", "{odd}"], "is not a report of jaxseg eval: it has no 'mIoU'"),
    (["{a}", "{b}", "--images=-1"], "--images is -1; expected 0 to 64"),
    (["{a}", "{b}", "--latency=64"], "--latency is '64'; expected HxW"),
  ],
)
def test_bad_input_is_one_sentence(runs, tmp_path, monkeypatch, capsys, words, sentence):
  monkeypatch.chdir(tmp_path)
  for name, text in (("broken", "{"), ("odd", "{}")):
    (tmp_path / name).mkdir()
    (tmp_path / name / "report.json").write_text(text)
  shutil.copytree(runs / "a", tmp_path / "new", ignore=shutil.ignore_patterns("eval"))
  places = {name: runs / name for name in "ab"} | {name: tmp_path / name for name in ("new", "broken", "odd")}
  capsys.readouterr()
  with pytest.raises(SystemExit) as stopped:
    cli.main(["compare", *(word.format(**places) for word in words)])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1, error


def test_names_are_the_shortest_that_differ():
  names = compare._names(["runs/x/1", "runs/y/1/", "runs/y/2"])
  assert names == ["x/1", "y/1", "y/2"]
