"""`jaxseg predict`: what it writes for a folder of mixed files, and what it says of those it cannot read."""

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import cli
from jaxseg.commands import predict
from jaxseg.errors import UserError
from jaxseg.hub import Net
from jaxseg.types import Preprocess

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A small network of three classes, saved as its own kind of file."""
  fields = dict(num_classes=3, encoder=dict(num_blocks=(1, 1)))
  model = jaxseg.create_model("cgnet_m3n21", **fields)
  image = np.zeros((1, 64, 64, 3), np.float32)
  variables = jax.jit(lambda: model.init(jax.random.key(3), image, train=False))()
  classes = ("sky", "road", "tree")
  net = Net(model, variables, Preprocess(), classes, PALETTE, "cgnet_m3n21", fields)
  folder = tmp_path_factory.mktemp("net")
  net.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Upright and turned, colour and grey, in folders, and five files that cannot be segmented."""
  folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
  (folder / "inner").mkdir()
  (folder / ".thumbnails").mkdir()
  image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48))
  cv2.imwrite(str(folder / "a.png"), image)
  cv2.imwrite(str(folder / "a.JPG"), image)
  cv2.imwrite(str(folder / "inner" / "grey.bmp"), image[..., 0])
  exif = Image.Exif()
  exif[0x0112] = 6  # has to be turned by 90 degrees
  Image.fromarray(image).save(folder / "turned.jpg", exif=exif)
  cv2.imwrite(str(folder / ".thumbnails" / "a.png"), image)
  (folder / "notes.txt").write_text("no image")
  cv2.imwrite(str(folder / "tiny.png"), image[:20, :20])
  cv2.imwrite(str(folder / "deep.png"), image.astype(np.uint16) * 256)
  data = (folder / "a.png").read_bytes()
  (folder / "cut.png").write_bytes(data[: len(data) // 2])
  (folder / "empty.jpg").write_bytes(b"")
  (folder / "evil\x1b[2J.png").write_bytes(b"hello")
  return folder


def test_a_folder(source, pictures, tmp_path, capsys):
  cli.main(
    ["predict", str(pictures), f"--source={source}", f"--output={tmp_path}", "--probabilities", "--exact"]
  )
  said = capsys.readouterr().out
  assert "4 of 9 images" in said and "5 could not be read:" in said
  for name in ("tiny.png is 20x20", "deep.png has uint16", "cut.png", "empty.jpg", r"evil\x1b[2J.png"):
    assert name in said, said
  assert "\x1b" not in said and "thumbnails" not in said
  written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*") if p.is_file()}
  names = ("a.png", "a.JPG", "turned.jpg", "inner/grey.bmp")
  kinds = ("overlay.png", "label.png", "probabilities.npz")
  assert written == {f"{name}.{kind}" for name in names for kind in kinds} | {"contact_sheet.png"}

  net = jaxseg.from_pretrained(source)
  for name in names:
    image = predict.read_image(pictures / name)
    assert image.shape[:2] == ((64, 48) if name == "turned.jpg" else (48, 64))
    with Image.open(tmp_path / f"{name}.label.png") as png:
      labels = np.asarray(png)
      assert png.getpalette()[:9] == PALETTE.reshape(-1).tolist()
    assert np.array_equal(labels, net.predict(image)), name
    stored = np.load(tmp_path / f"{name}.probabilities.npz")
    np.testing.assert_allclose(stored["probabilities"].astype(np.float32).sum(-1), 1, atol=3e-3)
    assert np.mean(stored["probabilities"].argmax(-1) == labels) > 0.99 and list(stored["classes"]) == list(
      net.classes
    )
    shown = cv2.imread(str(tmp_path / f"{name}.overlay.png"))[..., ::-1]
    expected = (image.astype(np.float32) + PALETTE[labels]) / 2
    assert np.abs(shown - expected).max() <= 0.5


def test_a_large_image_goes_through_in_windows(source, tmp_path, monkeypatch, capsys):
  """Its labels are those of sliding windows over the whole."""
  image = cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8), (150, 120))
  cv2.imwrite(str(tmp_path / "large.png"), image[..., ::-1])
  monkeypatch.setattr(predict, "LARGE", 10_000)
  command = ["predict", str(tmp_path / "large.png"), f"--source={source}", f"--output={tmp_path / 'out'}"]
  cli.main([*command, "--crop_size=64x64", "--stride=40x40"])
  labels = np.asarray(Image.open(tmp_path / "out" / "large.png.label.png"))
  net = jaxseg.from_pretrained(source)
  expected = net.predict(image, mode="slide", crop_size=(64, 64), stride=(40, 40))
  assert np.mean(labels == expected) >= 0.999
  with pytest.raises(SystemExit) as left:
    cli.main([*command, "--flip"])
  assert left.value.code == 2 and "goes through the network in windows" in capsys.readouterr().err


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["nowhere.jpg"], "there is no file or folder 'nowhere.jpg'"),
    (["{empty}"], "there is no image in"),
    (["{picture}", "--opacity=2"], "--opacity is 2.0; expected 0"),
    (["{picture}", "--crop_size=512"], "--crop_size is '512'; expected HxW"),
    (["{picture}", "--scales=0,1"], "--scales is '0,1'; expected factors"),
    (["{picture}", "--output={picture}"], "cannot be written"),
  ],
)
def test_wrong_words_are_a_sentence(words, sentence, source, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
  words = [w.format(empty=tmp_path / "empty", picture=tmp_path / "a.png") for w in words]
  with pytest.raises(SystemExit) as left:
    cli.main(["predict", *words, f"--source={source}"])
  assert left.value.code == 2 and sentence in capsys.readouterr().err


def test_nothing_that_can_be_read_is_a_failure(source, tmp_path):
  (tmp_path / "a.png").write_bytes(b"nothing")
  parser = predict.argparse.ArgumentParser()
  predict.add_flags(parser)
  flags = parser.parse_args([str(tmp_path), f"--source={source}", f"--output={tmp_path / 'out'}"])
  with pytest.raises(UserError, match="1 could not be read"):
    predict.run(flags, [])
