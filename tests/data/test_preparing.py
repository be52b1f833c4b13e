"""Preparing at length: progress, what counts as a change, Apache Beam."""

import importlib.util
import io
import os
import pathlib
import sys
import time

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data import DataError, files, open_split, preparing
from jaxseg.data.progress import Progress
from tests.data import miniature, official


@pytest.fixture
def settings(tmp_path):
  official.coco_stuff_164k(tmp_path / "source")
  return miniature.settings(
    "coco_stuff_164k", manual_dir=str(tmp_path / "source"), data_dir=str(tmp_path / "prepared")
  )


def test_progress_in_lines(settings, capsys, monkeypatch):
  monkeypatch.setattr("jaxseg.data.progress._EVERY", 0.0)
  data.prepare(settings)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("preparing coco_stuff_164k (2 train, 1 val pairs) in ")
  assert [line.split(",")[0] for line in lines[1:]] == [f"  {i} of 3 done" for i in (1, 2, 3)]


def test_progress_on_a_terminal(monkeypatch, capsys):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", terminal)
  with Progress(3) as progress:
    for _ in range(3):
      progress.advance()
  assert "3/3" in terminal.getvalue() and capsys.readouterr().out == ""


def test_any_change_is_another_state(tmp_path):
  folder = tmp_path / "a"
  (folder / "inner").mkdir(parents=True)
  file = folder / "inner" / "x.png"
  file.write_bytes(b"one")

  def state(edits: bool = True) -> str:
    return files.state([str(folder), str(tmp_path / "list.txt")], salt=b"", edits=edits)

  seen = [state()]
  assert state() == seen[0]
  file.write_bytes(b"two")  # of the same length
  os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns + 1))
  seen.append(state())
  (tmp_path / "list.txt").write_text("x")
  seen.append(state())
  file.rename(folder / "inner" / "y.png")
  seen.append(state())
  seen.append(files.state([str(folder), str(tmp_path / "list.txt")], salt=b"map", edits=True))
  assert len(set(seen)) == len(seen)


def test_nothing_to_prepare(settings, tmp_path):
  data.prepare(miniature.settings("synthetic"))
  with pytest.raises(DataError, match=r"coco_stuff_164k: data\.manual_dir is empty; set it to"):
    data.prepare(miniature.settings("coco_stuff_164k", data_dir=str(tmp_path / "nothing")))


def test_beam_without_the_extra(settings, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.delitem(sys.modules, "jaxseg.data.beam", raising=False)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxseg\[beam\]' brings it"):
    data.prepare(settings, beam_runner="DirectRunner")
  assert not list(pathlib.Path(settings.data_dir).rglob("dataset_info.json"))


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs the beam extra")
@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam_writes_the_same(settings, monkeypatch):
  monkeypatch.setattr(preparing, "_SHARD_BYTES", 1)
  expected = open_split(settings, "train")
  settings.data_dir += "_by_beam"
  data.prepare(settings, beam_runner="DirectRunner")
  found = open_split(settings, "train")
  for i in range(2):
    assert found[i]["id"] == expected[i]["id"]
    for key in ("image", "label"):
      np.testing.assert_array_equal(found[i][key], expected[i][key])

  mask = pathlib.Path(settings.manual_dir) / "stuffthingmaps/train2017/000000000025.png"
  mask.write_bytes(mask.read_bytes()[:100])
  with pytest.raises(DataError, match=r"mask .*000000000025.png is truncated .*; replace the file$"):
    data.prepare(settings, beam_runner="DirectRunner")
  with pytest.raises(DataError, match="Apache Beam has no runner 'NoRunner'"):
    data.prepare(settings, beam_runner="NoRunner")
