"""`jaxseg info`, `throughput`, `explain` and `robustness` on a model of 1x1 convolutions."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import cli, data
from jaxseg import config as config_lib
from jaxseg.commands import throughput
from jaxseg.commands.networks import drawn_variables, open_network
from jaxseg.evaluation.corruptions import corruptions_for
from jaxseg.hub import Net
from jaxseg.macs import count_by_part, count_macs
from jaxseg.types import Preprocess

CONFIG = "--config=colour_only_synthetic:smoke"


def save_net(folder, classes, channels=3):
  encoder = dict(in_channels=channels)
  model = jaxseg.create_model("colour_only", num_classes=len(classes), encoder=encoder)
  variables = jax.tree.map(np.asarray, drawn_variables(model))
  palette = np.arange(3 * len(classes), dtype=np.uint8).reshape(-1, 3)
  fields = dict(num_classes=len(classes), encoder=encoder)
  preprocess = Preprocess((99.0,) * channels, (50.0,) * channels)
  net = Net(model, variables, preprocess, classes, palette, "colour_only", fields)
  net.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  config = config_lib.load("colour_only_synthetic:smoke", overrides=[])
  return save_net(tmp_path_factory.mktemp("look") / "net", tuple(data.dataset_info(config.data).classes))


def size_of(path):
  """(width, height) of a picture."""
  with Image.open(path) as image:
    return image.size


def failed(words, capsys):
  with pytest.raises(SystemExit) as left:
    cli.main(words)
  said = capsys.readouterr()
  assert left.value.code == 2 and "Traceback" not in said.err
  return said.err


@pytest.mark.parametrize(
  "name, encoder",
  [
    ("cgnet_m3n21", dict(num_blocks=(1, 2))),
    ("segformer_b0", dict(depths=(1, 1, 1, 1))),
    ("deeplabv3plus_mobilenetv2", None),
    ("vgg16", None),
  ],
)
def test_the_parts_are_the_whole(name, encoder):
  fields = {} if name == "vgg16" else dict(num_classes=5, encoder=encoder)
  model = jaxseg.create_model(name, **fields)
  parts = count_by_part(model, (64, 96))
  assert sum(part.macs for part in parts.values()) == count_macs(model, (64, 96))
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), train=False)
  )
  total = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
  assert sum(part.parameters for part in parts.values()) == total
  assert all(part.largest > 0 for part in parts.values() if part.macs)


def test_info_is_a_table(capsys):
  cli.main(["info", "deeplabv3plus_mobilenetv2", "--size=64x96", "--num_classes=5"])
  lines = capsys.readouterr().out.splitlines()
  rows = {line.split()[0]: line for line in lines[2:40] if line.strip()}
  assert "5 classes" in lines[0] and "at 64x96" in lines[0]
  assert "5 x 16x24" in rows["decoder"] and "1/4" in rows["decoder"]
  assert "1/16" in rows["stage4"] and "100.0%" in rows["all"]
  # A sum's columns are those of its parts.
  count = lambda name: int(rows[name].split()[-5].replace(",", ""))  # noqa: E731
  assert count("all") == count("encoder") + count("decoder")
  # As the network computes, block2 before block10; what a part does not have is left empty.
  names = [line.split()[0] for line in lines[4:40] if line.startswith("  ")]
  assert names[:4] == ["stem", "block0", "block1", "block2"] and names.index("block10") > names.index(
    "block9"
  )
  assert names.index("aspp") < names.index("conv0") < names.index("classifier")
  assert rows["stage4"].split() == ["stage4", "320", "x", "4x6", "1/16"]
  assert "0.000" not in "".join(lines) and "<0.001" in rows["low_level"]


def test_info_of_a_wrong_size(capsys):
  assert "--size is '64'; expected HxW" in failed(["info", "cgnet_m3n21", "--size=64"], capsys)


def test_throughput(source, tmp_path, capsys):
  words = ["throughput", str(source), "--size=32x48", "--batch_sizes=1,2", "--seconds=0.05"]
  cli.main([*words, f"--output={tmp_path}"])
  said = capsys.readouterr().out
  values = json.loads((tmp_path / "throughput.json").read_text())
  assert [row["batch_size"] for row in values["rows"]] == [1, 2] and values["size"] == [32, 48]
  for row in values["rows"]:
    assert 0 < row["latency_p50_ms"] <= row["latency_p99_ms"] and row["calls"] >= 5
    assert f"{row['images_per_second']:.4g}" in said
  assert size_of(tmp_path / "throughput.png")[0] > 800


def test_rates_are_those_of_the_clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(throughput.jax, "block_until_ready", lambda x: x)
  slow = iter([0.1] * 8 + [0.5] + [0.1] * 1000)

  def call():
    now[0] += next(slow)

  found = throughput.measure(call, seconds=1.2)
  assert found["calls"] == 9 and found["latency_p50_ms"] == pytest.approx(100)
  assert 450 < found["latency_p99_ms"] < 500 and found["calls_per_second"] == pytest.approx(10)


def test_a_first_batch_without_room_is_a_sentence(monkeypatch, tmp_path, capsys):
  def refuse(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

  monkeypatch.setattr(throughput, "measure", refuse)
  words = ["throughput", "colour_only", "--size=32x32", f"--output={tmp_path}"]
  assert "a batch of 1 images of 32x32 does not run on the device (RESOURCE_EXHAUSTED" in failed(
    words, capsys
  )


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["throughput", "segfromer_b0"], "'segfromer_b0' is no model and no file; did you mean 'segformer_b0'"),
    (["throughput", "mit_b0"], "mit_b0 has no segmentation head"),
    (
      ["throughput", "colour_only", "--batch_sizes=0"],
      "--batch_sizes is '0'; expected whole numbers of 1 to",
    ),
    (["throughput", "colour_only", "--batch_sizes=2,2"], "a number occurs twice"),
    (["throughput", "colour_only", "--seconds=0"], "--seconds is 0; expected more than 0"),
    (["explain", "colour_only", "--at=stage9"], "has no 'stage9'"),
    (["explain", "a", "b", "c"], "3 sources are given; expected one, or two"),
    (["explain", "colour_only", "--count=0"], "--count is 0; expected 1 to 10000"),
    (["explain", "colour_only", "--images=nowhere"], "--images is 'nowhere', which is no folder"),
    (["robustness", "{source}"], "give --config=FILE, which says on what data to test"),
    (["robustness", "{source}", CONFIG, "--corruptions=fogg"], "--corruptions holds 'fogg', which is none"),
    (
      ["robustness", "{source}", CONFIG, "--severities=6"],
      "--severities is '6'; expected whole numbers of 1",
    ),
    (["robustness", "{source}", CONFIG, "--corruptions=none"], "leaves nothing to test"),
    (["robustness", "{source}", CONFIG, "--images=-1"], "--images is -1; expected 0 or more"),
    (
      ["robustness", "{source}", CONFIG, "--config.model.num_classes=3"],
      "config.model.num_classes would have",
    ),
    (["robustness", "{source}", CONFIG, "--frost=nowhere"], "--frost is 'nowhere', which is no folder"),
  ],
)
def test_wrong_words_are_a_sentence(words, sentence, source, tmp_path, capsys):
  words = [word.format(source=source) for word in words]
  assert sentence in failed([*words, f"--output={tmp_path}"], capsys)


def test_explain_of_one_pixel(source, tmp_path, capsys):
  """1x1 convolutions see one pixel, wherever it is."""
  cli.main(["explain", str(source), "colour_only", "--size=32x32", "--count=2", f"--output={tmp_path}"])
  values = json.loads((tmp_path / "receptive_fields.json").read_text())
  head = [row for row in values["fields"] if row["place"] == "head"]
  assert [row["trained"] for row in head] == [True, False]
  assert {row["side_95%"] for row in head} == {1} and "(drawn weights)" in capsys.readouterr().out
  stored = np.load(tmp_path / "receptive_fields.npz")
  assert stored["0_head"].shape == (32, 32) and np.count_nonzero(stored["0_head"]) == 1
  assert size_of(tmp_path / "receptive_fields.png")[1] > 300


def test_photos_of_explain(tmp_path, capsys):
  rng = np.random.default_rng(0)
  (tmp_path / "in").mkdir()
  for i, size in enumerate([(40, 48), (20, 90)]):
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "in" / f"{i}.png")
  words = [
    "explain",
    "colour_only",
    f"--images={tmp_path / 'in'}",
    f"--output={tmp_path / 'out'}",
    "--at=head",
  ]
  cli.main([*words, "--size=32x32"])
  assert json.loads((tmp_path / "out" / "receptive_fields.json").read_text())["count"] == 1
  assert "has 64x64 pixels; give a smaller --size" in failed([*words, "--size=64x64"], capsys)


def test_explain_and_robustness_of_other_channels(source, tmp_path, capsys):
  rng, size = np.random.default_rng(0), (40, 48)
  five = save_net(tmp_path / "five", ("a", "b"), channels=5)
  for kind in ("images", "masks"):
    (tmp_path / "data" / kind).mkdir(parents=True)
  for i in range(3):
    np.save(tmp_path / "data" / "images" / f"{i}.npy", rng.integers(0, 256, (*size, 5), np.uint8))
    Image.fromarray(rng.integers(0, 2, size, np.uint8)).save(tmp_path / "data" / "masks" / f"{i}.png")
  (tmp_path / "data" / "val.txt").write_text("0\n1\n2\n")
  out = f"--output={tmp_path / 'out'}"
  words = ["explain", str(five), "--size=32x32", out]
  cli.main(words)
  photos = f"--images={tmp_path / 'data' / 'images'}"
  cli.main([*words, photos])
  assert json.loads((tmp_path / "out" / "receptive_fields.json").read_text())["count"] == 3
  said = failed(["explain", str(source), str(five), "--size=32x32", out, photos], capsys)
  assert "takes images of 3 channels and five of 5; look at one after the other" in said
  words = [
    "robustness",
    str(five),
    "--config=cgnet_m3n21_folder",
    f"--config.data.manual_dir={tmp_path / 'data'}",
    f"--config.data.data_dir={tmp_path / 'prepared'}",
    "--config.data.classes=a,b",
    "--config.data.color=none",
    "--config.data.workers=0",
    "--config.eval.details=False",
    "--severities=2",
    out,
  ]
  of_five = ["--config.data.channels=5"]
  cli.main([*words, *of_five])
  assert "images of 5 channels: snow, spatter, frost, saturate are of colours" in capsys.readouterr().out
  (result,) = json.loads((tmp_path / "out" / "robustness.json").read_text())["results"]
  assert list(result["corruptions"]) == list(corruptions_for(5)) and result["clean"] > 0
  assert "--corruptions holds snow, which is of" in failed(
    [*words, *of_five, "--corruptions=fog,snow"], capsys
  )
  words[1] = str(source)
  assert "takes images of 3 channels, but config.data.channels is 5" in failed([*words, *of_five], capsys)


def test_drawn_variables_have_the_models_shapes():
  network = open_network("colour_only", num_classes=4)
  image = np.zeros((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(lambda: network.model.init(jax.random.key(0), image, train=False))
  assert jax.tree.map(np.shape, network.variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_robustness(source, tmp_path, capsys):
  words = ["robustness", str(source), str(source), CONFIG, "--config.data.workers=0", f"--output={tmp_path}"]
  words.append("--config.eval.details=False")
  cli.main([*words, "--corruptions=fog,contrast", "--severities=1,5", "--sizes=48", "--images=2"])
  said = capsys.readouterr().out
  values = json.loads((tmp_path / "robustness.json").read_text())
  first, second = values["results"]
  assert first == second, "every model sees the same pixels"
  assert values["images"] == 2 and set(first["corruptions"]) == {"fog", "contrast"}
  assert first["corruptions"]["fog"]["1"] != first["clean"] and set(first["sizes"]) == {"48"}
  assert "mean of all" in said and "share of clean" in said and "short side 48" in said
  assert "| fog |" in (tmp_path / "robustness.md").read_text()
  assert size_of(tmp_path / "robustness.png")[0] > 900
  # Against its own clean labels the clean score is 1, whatever the classes are called.
  cli.main([*words[:2], *words[3:], "--agreement", "--corruptions=contrast", "--severities=5", "--images=2"])
  (result,) = json.loads((tmp_path / "robustness.json").read_text())["results"]
  assert result["clean"] == 1.0 and result["corruptions"]["contrast"]["5"] < 1
  # Weights of other classes are scored by eval.class_map.
  other = save_net(tmp_path / "other", ("a", "b", "c"))
  words[1] = str(other)
  del words[2]
  said = failed([*words, "--corruptions=fog", "--severities=5", "--images=2"], capsys)
  assert "has 3 classes, but synthetic has 8" in said
  words += [
    "--corruptions=fog",
    "--severities=5",
    "--images=2",
    "--config.eval.class_map=((0,2),(1,3),(2,3))",
  ]
  cli.main(words)
  (result,) = json.loads((tmp_path / "robustness.json").read_text())["results"]
  assert 0 < result["clean"] < 0.5
