"""The guide's Python runs, and the page that `make crf-page` renders holds what it promises."""

import pathlib
import re
import runpy

import cv2
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_guide_runs():
  code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/crf.md").read_text(), flags=re.S))
  assert code.count("assert") >= 3
  exec(compile(code, "docs/crf.md", "exec"), {"__name__": "page"})


@pytest.fixture(scope="module")
def render():
  # Its errors are ours, as under `python docs/render.py`.
  return runpy.run_path(str(ROOT / "docs/render.py"), run_name="jaxseg.docs_render")


def test_page_of_a_drawn_scene(render, tmp_path, capsys):
  rng = np.random.default_rng(0)
  scene = np.full((90, 120, 3), (150, 120, 60), np.uint8)
  cv2.circle(scene, (70, 50), 30, (40, 60, 210), -1)
  scene = np.clip(scene + rng.normal(0, 8, scene.shape), 0, 255).astype(np.uint8)
  cv2.imwrite(str(tmp_path / "scene.png"), scene)
  words = [f"--picture={tmp_path / 'scene.png'}", f"--output={tmp_path / 'out'}", "--size=60", "--steps=4"]
  render["main"]([*words, "--sxy=20", "--srgb=10"])
  page = (tmp_path / "out" / "crf.html").read_text()
  assert "60×45 pixels" in page and "stand in" in page and "crf.png" in page
  energies = [float(x.replace(",", "")) for x in re.findall(r"<td>\d+</td><td>(-?[\d,.]+)</td>", page)]
  assert len(energies) == 5 and (np.diff(energies) < 0).all()
  figure = cv2.imread(str(tmp_path / "out" / "crf.png"))
  assert figure.shape[1] > 1000 and figure.std() > 10
  assert capsys.readouterr().out.strip().endswith("crf.html")


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    ([], "no picture is named; say which one: make crf-page PICTURE=photo.jpg"),
    (["--picture="], "no picture is named"),
    (["--picture=none.jpg"], "there is no picture 'none.jpg'"),
    (["--picture=docs/crf.md"], "cannot be read as a picture"),
    (["--picture=docs/quickstart.png", "--steps=0"], "steps is 0; expected a whole number"),
    (["--picture=docs/quickstart.png", "--sigma=3"], "there is no flag --sigma"),
  ],
)  # fmt: skip
def test_bad_input_is_a_sentence(render, words, sentence, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit) as stopped:
    render["main"](words)
  assert stopped.value.code == 2
  said = capsys.readouterr().err
  assert sentence in said and len(said.strip().splitlines()) == 1
