"""Images of more than 8 bits: predict reads them by the range with which the weights were trained."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import cli
from jaxseg.data import reading
from jaxseg.errors import UserError
from jaxseg.hub import Net
from jaxseg.hub.reading import read_image
from jaxseg.types import Preprocess
from tests.hub.small import init

RANGE = (0.0, 1000.0)
SIZE = (40, 48)
DEEP = Preprocess(value_range=RANGE)


def net_of(value_range=(), channels=3):
  model, variables = init(name="colour_only", encoder=dict(in_channels=channels))
  preprocess = Preprocess((110.0,) * channels, (60.0,) * channels, value_range=value_range)
  palette = np.arange(15, dtype=np.uint8).reshape(5, 3)
  fields = dict(num_classes=5, encoder=dict(in_channels=channels))
  return Net(model, variables, preprocess, tuple("abcde"), palette, "colour_only", fields)


@pytest.fixture(scope="module")
def deep():
  return np.random.default_rng(0).integers(0, 1200, (*SIZE, 3)).astype(np.uint16)


def as_trained(image):
  return np.floor(np.clip(image * 0.255, 0, 255) + 0.5).astype(np.uint8)


def write(folder, deep):
  """The same image in every form that training reads."""
  np.save(folder / "a.npy", deep)
  cv2.imwrite(str(folder / "b.png"), deep[..., ::-1])
  cv2.imwrite(str(folder / "c.tif"), deep[..., ::-1])
  return [folder / name for name in ("a.npy", "b.png", "c.tif")]


def test_read_as_training_reads(tmp_path, deep):
  for path in write(tmp_path, deep):
    found = read_image(path, preprocess=DEEP)
    np.testing.assert_array_equal(found, as_trained(deep))
    rule = reading.Rule(RANGE)
    np.testing.assert_array_equal(found, reading.read_image(path.read_bytes(), "x", rule))
    with pytest.raises(UserError, match=r"holds uint16 values from \d+ to \d+; say which become 0 and 255"):
      read_image(path)
  grey = deep[..., 0]
  Image.fromarray(grey).save(tmp_path / "grey.png")
  for form in (tmp_path / "grey.png", Image.fromarray(grey)):
    np.testing.assert_array_equal(read_image(form, preprocess=DEEP), as_trained(np.stack([grey] * 3, -1)))
    assert read_image(form, preprocess=Preprocess((0.0,), (1.0,), value_range=RANGE)).shape == (*SIZE, 1)
    with pytest.raises(UserError, match="holds uint16 values"):
      read_image(form)
  np.testing.assert_array_equal(read_image(deep / np.float32(1), preprocess=DEEP), as_trained(deep))
  np.testing.assert_array_equal(read_image(as_trained(deep), preprocess=DEEP), as_trained(deep))


def test_the_range_travels_with_the_weights(tmp_path, deep):
  net = net_of(RANGE)
  wanted = net.predict(as_trained(deep))
  np.testing.assert_array_equal(net.predict(deep), wanted)
  net.save_pretrained(tmp_path)
  assert "with more than 8 bits 0 to 1000 become 0 to 255" in (tmp_path / "README.md").read_text()
  again = jaxseg.from_pretrained(tmp_path)
  assert again.preprocess == net.preprocess
  np.testing.assert_array_equal(again.predict(deep), wanted)
  # What is given goes before what is known, and the statistics stay.
  other = jaxseg.from_pretrained(tmp_path, preprocess=dict(value_range=(0, 500)))
  assert other.preprocess.value_range == (0.0, 500.0) and other.preprocess.mean == net.preprocess.mean
  config = json.loads((tmp_path / "config.json").read_text())
  for wrong in ([1000, 0], [0], "0,1", [0, 1e99]):
    config["preprocess"]["value_range"] = wrong
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: preprocess.value_range is .*, expected \(low, high\)"):
      jaxseg.from_pretrained(tmp_path)


def test_the_command(tmp_path, deep, capsys):
  for name, value_range in (("known", RANGE), ("unknown", ())):
    net_of(value_range).save_pretrained(tmp_path / name)
  (tmp_path / "in").mkdir()
  write(tmp_path / "in", deep)
  wanted = net_of().predict(as_trained(deep))

  def run(*words):
    cli.main(["predict", str(tmp_path / "in"), f"--output={tmp_path / 'out'}", *words])
    for name in ("a.npy", "b.png", "c.tif"):
      with Image.open(tmp_path / "out" / f"{name}.label.png") as label:
        np.testing.assert_array_equal(np.asarray(label), wanted)

  run(f"--source={tmp_path / 'known'}")
  run(f"--source={tmp_path / 'unknown'}", "--value_range=0,1000")
  with pytest.raises(SystemExit):
    run(f"--source={tmp_path / 'unknown'}")
  said = capsys.readouterr().err
  assert "3 of 3 files could not be read" in said and said.count("say which become 0 and 255") == 3
  with pytest.raises(SystemExit):
    run(f"--source={tmp_path / 'known'}", "--value_range=9,3")
  assert "--value_range is '9,3'; expected two numbers, the lower first" in capsys.readouterr().err


def test_a_run_keeps_the_range_of_its_data(tmp_path):
  rng = np.random.default_rng(0)
  for kind in ("images", "masks"):
    (tmp_path / "data" / kind).mkdir(parents=True)
  for i in range(4):
    np.save(tmp_path / "data" / "images" / f"{i}.npy", rng.integers(0, 1200, (*SIZE, 3)).astype(np.uint16))
    Image.fromarray(rng.integers(0, 2, SIZE, np.uint8)).save(tmp_path / "data" / "masks" / f"{i}.png")
  workdir = tmp_path / "run"
  settings = {
    "data.dir": tmp_path / "data",
    "data.data_dir": tmp_path / "prepared",
    "data.value_range": "0,1000",
    "data.classes": "a,b",
    "data.crop_size": "32,32",
    "data.workers": 0,
    "batch_size": 2,
    "total_steps": 1,
    "checkpoint.save_pretrained": True,
    "log.panel_every_steps": 0,
    "eval.details": False,
  }
  words = [f"--config.{key}={value}" for key, value in settings.items()]
  cli.main(["train", "--config=folder:colour_only", f"--workdir={workdir}", *words])
  for place in (workdir, workdir / "best"):
    assert jaxseg.from_pretrained(place).preprocess.value_range == RANGE
