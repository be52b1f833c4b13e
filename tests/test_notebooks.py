"""The notebooks run from top to bottom, smaller than a reader runs them."""

import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
SMALL = {"widths": (8, 16, 32), "num_blocks": (1, 1), "reductions": (4, 8)}
# Values of a notebook's first cell.
TOY = {
  "train.ipynb": {"STEPS": 3, "SIZE": 32, "BATCH": 2, "ENCODER": SMALL},
  "predict.ipynb": {"WEIGHTS": "", "PHOTO": "", "SIZE": 64, "ENCODER": SMALL},
}


def code_cells(name):
  notebook = json.loads((FOLDER / name).read_text())
  assert notebook["nbformat"] == 4
  assert all(not cell.get("outputs") for cell in notebook["cells"])  # what was seen belongs to one machine
  return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_run():
  assert {path.name for path in FOLDER.glob("*.ipynb")} == set(TOY)


@pytest.mark.parametrize("name", TOY)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
  matplotlib = pytest.importorskip("matplotlib")
  monkeypatch.chdir(tmp_path)
  with matplotlib.rc_context({"backend": "Agg"}):
    settings, *cells = code_cells(name)
    scope = {"__name__": name}
    exec(settings, scope)
    assert set(TOY[name]) <= set(scope)
    scope |= TOY[name]
    for i, cell in enumerate(cells):
      exec(compile(cell, f"{name}, cell {i}", "exec"), scope)
    matplotlib.pyplot.close("all")
  if name == "train.ipynb":
    assert scope["report"].matrix.sum() > 0 and (tmp_path / "my_model").is_dir()
  else:
    assert scope["label"].shape == (64, 64)
