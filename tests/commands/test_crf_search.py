"""The search finds what eval.py --crf then measures, keeps what it has counted, and says what is wrong."""

import json
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import pytest

from jaxseg import cli
from jaxseg import config as config_lib
from jaxseg.commands import crf_log, crf_search, evaluate, target
from jaxseg.crf import Grid, Settings
from jaxseg.types import Preprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRID = Grid((2.0, 6.0), (15.0,), (20.0,))


@pytest.fixture(scope="module")
def config():
  return config_lib.load(
    str(ROOT / "configs/colour_only_synthetic.py:smoke"), overrides=[("eval.crf.steps", "2")]
  )


class ByGrey(nn.Module):
  """Says the class whose number a pixel's grey level has, at an eighth of the resolution."""

  num_classes: int

  def __call__(self, image, *, train):
    coarse = image.mean(-1)[:, 4::8, 4::8, None]
    return {"logits": -(((coarse - jnp.linspace(0, 255, self.num_classes)) / 40) ** 2)}


@pytest.fixture(scope="module")
def subject(config):
  classes = config.model.num_classes
  return target.TrainedModel("by grey", ByGrey(classes), {}, Preprocess((0.0,) * 3, (1.0,) * 3), classes)


def test_search_stops_and_goes_on_and_agrees_with_the_evaluation(config, subject, tmp_path, monkeypatch):
  search = lambda folder: crf_search.search(  # noqa: E731
    subject, config, output=tmp_path / folder, grid=GRID, images=3, rounds=2
  )
  whole = search("whole")
  assert len(whole.tried) > len(GRID.settings()), "the second round tried more"
  assert whole.miou == max(whole.tried.values()) > min(whole.tried.values())

  counted = []
  add = crf_log.SearchLog.add

  def add_and_stop(log, image, setting, matrix):
    if len(counted) == 4:
      raise KeyboardInterrupt
    counted.append((image, setting))
    add(log, image, setting, matrix)

  monkeypatch.setattr(crf_log.SearchLog, "add", add_and_stop)
  with pytest.raises(KeyboardInterrupt):
    search("stopped")
  with open(tmp_path / "stopped" / "search.jsonl", "a") as file:
    file.write('{"image": 2, "sett')  # a kill in mid-write

  def add_anew(log, image, setting, matrix):
    assert (image, setting) not in counted, "counted twice"
    add(log, image, setting, matrix)

  monkeypatch.setattr(crf_log.SearchLog, "add", add_anew)
  assert search("stopped") == whole
  saved = json.loads((tmp_path / "stopped" / "crf.json").read_text())
  assert tuple(saved["best"].values()) == whole.setting and saved["mIoU"] == whole.miou
  assert saved["mIoU_without_crf"] == whole.without and len(saved["tried"]) == len(whole.tried)

  w1, sxy, srgb = whole.setting
  crf = Settings(w1=w1, sxy=sxy, srgb=srgb, steps=2)
  report = evaluate.evaluate(subject, config, output=tmp_path / "eval", crf=crf)
  assert report.miou == whole.miou
  written = json.loads((tmp_path / "eval" / "report.json").read_text())
  assert written["crf"]["sxy"] == sxy and written["mIoU"] == whole.miou
  assert written["without_crf"]["mIoU"] == whole.without == evaluate.evaluate(
    subject, config, output=tmp_path / "eval"
  ).miou  # fmt: skip

  config = config.copy_and_resolve_references()
  config.eval.crf.w2 = 1.0
  with pytest.raises(ValueError, match=r"is another search: w2 3.0 \(now 1.0\); choose another --output"):
    crf_search.search(subject, config, output=tmp_path / "whole", grid=GRID)


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (["crf-search"], "give either --workdir=DIR or --source=FILE"),
    (["crf-search", "--workdir=none", "--w1=a,b"], "--w1 is 'a,b'; expected numbers with commas between"),
    (["crf-search", "--workdir=none"], "'none' is no workdir of train.py"),
    (["crf-search", "--source=x.npz", "--config=configs/colour_only_synthetic.py", "--config.eval.crf.w3=1"],
     "config.eval.crf has no key 'w3'"),
    (["eval", "--source=x.npz", "--config=configs/colour_only_synthetic.py", "--config.eval.crf.steps=0"],
     "config.eval.crf.steps is 0; expected at least 1"),
    (["eval", "--source=x.npz", "--config=configs/colour_only_synthetic.py", "--crf",
      "--config.eval.crf.srgb=-3"], "config.eval.crf.srgb is -3.0; expected above 0"),
  ],
)  # fmt: skip
def test_bad_input_is_a_sentence(words, sentence, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit) as stopped:
    cli.main(words)
  assert stopped.value.code == 2
  said = capsys.readouterr().err
  assert sentence in said and len(said.strip().splitlines()) == 1


def test_a_grid_of_nonsense_is_a_sentence(config, subject, tmp_path):
  with pytest.raises(ValueError, match="the grid has srgb 0; expected values above 0"):
    crf_search.search(subject, config, output=tmp_path, grid=GRID._replace(srgb=(0,)))
  with pytest.raises(ValueError, match="--images is 0 and --rounds 2; both must be at least 1"):
    crf_search.search(subject, config, output=tmp_path, grid=GRID, images=0)
