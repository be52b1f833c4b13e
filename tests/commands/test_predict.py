"""`jaxseg predict`: what it writes for a folder of mixed files, and what it says of those it cannot read."""

import av
import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import cli
from jaxseg import config as config_lib
from jaxseg.commands import predict, predict_files
from jaxseg.commands.networks import drawn_variables
from jaxseg.crf import Settings
from jaxseg.errors import UserError
from jaxseg.hub import Net
from jaxseg.hub.reading import read_image
from jaxseg.types import Preprocess

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Three classes by colour alone, which compiles in no time, saved as its own kind of file."""
  fields = dict(num_classes=3)
  model = jaxseg.create_model("colour_only", **fields)
  variables = jax.tree.map(np.asarray, drawn_variables(model))
  net = Net(model, variables, Preprocess(), ("sky", "road", "tree"), PALETTE, "colour_only", fields)
  folder = tmp_path_factory.mktemp("net")
  net.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Upright and turned, colour and grey, in folders, and six files that cannot be segmented."""
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
  cv2.imwrite(str(folder / "deep.png"), image[..., 0].astype(np.uint16) * 256)
  data = (folder / "a.png").read_bytes()
  (folder / "cut.png").write_bytes(data[: len(data) // 2])
  data = (folder / "a.JPG").read_bytes()
  (folder / "cut.jpg").write_bytes(data[: len(data) * 3 // 4])
  (folder / "empty.jpg").write_bytes(b"")
  (folder / "evil\x1b[2J.png").write_bytes(b"hello")
  return folder


def test_a_folder(source, pictures, tmp_path, capsys):
  with pytest.raises(SystemExit) as left:
    cli.main(
      ["predict", str(pictures), f"--source={source}", f"--output={tmp_path}", "--probabilities", "--exact"]
    )
  printed = capsys.readouterr()
  said = printed.out + printed.err
  assert left.value.code == 2
  assert "4 of 10 files" in said and "6 of 10 files could not be read" in said
  assert [f"compiling {i} of 2" in said for i in (1, 2, 3)] == [True, True, False]
  for name in ("tiny.png is 20x20", "deep.png holds uint16 values from", "cut.png", "cut.jpg", "empty.jpg"):
    assert name in said, said
  assert r"evil\x1b[2J.png" in said
  assert "\x1b" not in said and "thumbnails" not in said
  written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*") if p.is_file()}
  names = ("a.png", "a.JPG", "turned.jpg", "inner/grey.bmp")
  kinds = ("overlay.png", "label.png", "probabilities.npz")
  assert written == {f"{name}.{kind}" for name in names for kind in kinds} | {"contact_sheet.png"}

  net = jaxseg.from_pretrained(source)
  for name in names:
    image = read_image(pictures / name)
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
  monkeypatch.setattr(predict_files, "LARGE", 10_000)
  command = ["predict", str(tmp_path / "large.png"), f"--source={source}", f"--output={tmp_path / 'out'}"]
  cli.main([*command, "--crop_size=64x64", "--stride=40x40"])
  labels = np.asarray(Image.open(tmp_path / "out" / "large.png.label.png"))
  net = jaxseg.from_pretrained(source)
  expected = net.predict(image, mode="slide", crop_size=(64, 64), stride=(40, 40))
  assert np.mean(labels == expected) >= 0.999
  with pytest.raises(SystemExit) as left:
    cli.main([*command, "--flip"])
  assert left.value.code == 2 and "goes through the network in windows" in capsys.readouterr().err


def test_the_rule_and_the_crf_are_those_of_predict(source, tmp_path):
  image = cv2.resize(np.random.default_rng(2).integers(0, 256, (6, 8, 3), np.uint8), (64, 48))
  Image.fromarray(image).save(tmp_path / "a.png")
  command = ["predict", str(tmp_path / "a.png"), f"--source={source}", f"--output={tmp_path}"]
  crf = dict(w1=6.0, sxy=9.0, srgb=30.0, steps=2, method="exact")
  text = ",".join(f"{name}={value}" for name, value in crf.items())
  cli.main([*command, "--flip", "--scales=1,1.25", f"--crf={text}"])
  net, rule = jaxseg.from_pretrained(source), dict(flip=True, scales=(1.0, 1.25))
  expected = net.predict(image, **rule, crf=Settings(**crf))
  labels = np.asarray(Image.open(tmp_path / "a.png.label.png"))
  assert np.mean(labels == expected) >= 0.999
  assert np.mean(labels == net.predict(image, **rule)) < 0.999
  assert np.mean(labels == net.predict(image, crf=Settings(**crf))) < 0.999


def test_the_rule_of_a_workdir_and_what_flags_change():
  known = config_lib.load("cgnet_m3n21_synthetic:smoke").eval
  with known.unlocked():
    known.update(mode="slide", crop_size=(64, 96), stride=(32, 48), flip=True)
    known.crf.sxy = 99.0
  parser = predict.argparse.ArgumentParser()
  predict.add_flags(parser)
  flags = lambda *words: parser.parse_args(["x.jpg", "--source=x", *words])  # noqa: E731
  rule, crf = predict.make_rule(flags(), known)
  assert (rule.mode, rule.crop_size, rule.stride, rule.flip, crf) == ("slide", (64, 96), (32, 48), True, None)
  rule, crf = predict.make_rule(flags("--mode=whole", "--scales=0.5", "--crf=w1=2"), known)
  assert (rule.mode, rule.scales, crf.sxy, crf.w1) == ("whole", (0.5,), 99.0, 2.0)
  rule, crf = predict.make_rule(flags("--crf"), {})
  assert rule.plain and crf == Settings()


def test_many_sizes_share_a_few_compiled_inputs(source, tmp_path, capsys):
  rng = np.random.default_rng(3)
  for i in range(10):
    Image.fromarray(rng.integers(0, 256, (40 + i, 44 + 8 * i, 3), np.uint8)).save(tmp_path / f"{i}.png")
  command = ["predict", str(tmp_path), f"--source={source}", f"--output={tmp_path / 'out'}", "--batch_size=4"]
  cli.main(command)
  said = capsys.readouterr().out
  assert "10 of 10 files" in said and "resized to a few" in said
  total = int(said.split("compiling 1 of ")[1].split()[0])
  assert total <= 8 and f"compiling {total} of {total}" in said
  for i in range(10):
    labels = np.asarray(Image.open(tmp_path / "out" / f"{i}.png.label.png"))
    assert labels.shape == (40 + i, 44 + 8 * i)


def test_what_a_rule_makes_too_small_is_named_and_the_rest_is_done(source, tmp_path, capsys):
  for name, side in (("large", 80), ("small", 50)):
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{name}.png")
  with pytest.raises(SystemExit) as left:
    cli.main(["predict", str(tmp_path), f"--source={source}", f"--output={tmp_path}/out", "--scales=0.5"])
  said = capsys.readouterr()
  assert left.value.code == 2 and "1 of 2 files in" in said.out
  assert "small.png is 50x50 and would reach the network as 25x25; a side needs at least 32" in said.err
  assert (tmp_path / "out" / "large.png.label.png").exists()


def test_results_of_an_earlier_run_are_no_images(source, tmp_path, capsys):
  Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
  Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "b.png")
  for _ in range(2):
    cli.main(["predict", str(tmp_path), f"--source={source}", f"--output={tmp_path}"])
    assert "2 of 2 files in" in capsys.readouterr().out
  # One file under two names is one file.
  cli.main(["predict", str(tmp_path / "a.png"), str(tmp_path), f"--source={source}", f"--output={tmp_path}"])
  assert "2 of 2 files in" in capsys.readouterr().out


def draw_video(path, frames, *, size=(48, 65), rate=12):
  """A square that walks to the right."""
  with av.open(str(path), "w") as sink:
    stream = sink.add_stream("mpeg4", rate=rate)
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    for i in range(frames):
      image = np.full((*size, 3), 40, np.uint8)
      image[10:30, 2 * i : 2 * i + 20] = (220, 180, 30)
      sink.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    sink.mux(stream.encode(None))


def test_a_video(source, tmp_path, capsys):
  draw_video(tmp_path / "walk.mp4", 10, size=(48, 64))
  command = ["predict", str(tmp_path / "walk.mp4"), f"--source={source}", f"--output={tmp_path / 'out'}"]
  cli.main([*command, "--batch_size=4", "--opacity=1"])
  assert "(10 frames of video)" in capsys.readouterr().out
  net = jaxseg.from_pretrained(source)
  with (
    av.open(str(tmp_path / "walk.mp4")) as before,
    av.open(str(tmp_path / "out/walk.mp4.overlay.mp4")) as made,
  ):
    frames = [list(c.decode(video=0)) for c in (before, made)]
    assert made.streams.video[0].average_rate == 12
  assert [float(f.time) for f in frames[0]] == pytest.approx([float(f.time) for f in frames[1]], abs=1e-3)
  for old, new in zip(*frames, strict=True):
    expected = PALETTE[net.predict(old.to_ndarray(format="rgb24"))].astype(int)
    # Far from perfect where colours meet: chroma is stored at half the size.
    assert np.median(np.abs(new.to_ndarray(format="rgb24") - expected)) < 8
  # What breaks off is written as far as it goes, and named.
  data = (tmp_path / "walk.mp4").read_bytes()
  (tmp_path / "cut.avi").write_bytes(data[: len(data) // 3])
  with pytest.raises(SystemExit):
    cli.main(["predict", str(tmp_path / "cut.avi"), *command[2:]])
  assert "cut.avi" in capsys.readouterr().err


@pytest.mark.parametrize(
  "words, sentence",
  [
    (["nowhere.jpg"], "there is no file or folder 'nowhere.jpg'"),
    (["{empty}"], "there is no image or video in"),
    ([""], "a file or folder is given as ''; name it"),
    (["{picture}", "{other}"], "other/a.png would both be written as a.png; segment them one after"),
    (["{broken}"], "broken.jpg cannot be read (UnidentifiedImageError): damaged, or no image"),
    (["{picture}", "--scales="], "--scales is ''; expected numbers of 0.05 to 16"),
    (["{picture}", "--source=nowhere"], "there is no file 'nowhere'"),
    (["{picture}", "--opacity=2"], "--opacity is 2.0; expected 0"),
    (["{picture}", "--crop_size=512"], "--crop_size is '512'; expected HxW"),
    (["{picture}", "--scales=0,1"], "--scales is '0,1'; expected numbers of 0.05 to 16"),
    (["{picture}", "--output={picture}"], "cannot be written"),
    (["{picture}", "--batch_size=0"], "--batch_size is 0; expected 1 image or more"),
    (["{picture}", "--crop_size=64x64", "--stride=65x64"], "--stride 65x64 is larger than the windows"),
    (["{picture}", "--crf=w3=1"], "--crf holds 'w3=1'; expected KEY=VALUE with w1, sxy"),
    (["{picture}", "--crf=w1=much"], "--crf has w1='much'; expected a number"),
    (["{picture}", "--crf=steps=0"], "steps is 0; expected a whole number"),
    (["{video}", "--probabilities"], "are written for images alone"),
    (["{video}"], "a.mp4 holds no frame that can be decoded"),
  ],
)
def test_wrong_words_are_a_sentence(words, sentence, source, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  (tmp_path / "other").mkdir()
  for place in ("a.png", "other/a.png"):
    cv2.imwrite(str(tmp_path / place), np.zeros((40, 40, 3), np.uint8))
  (tmp_path / "broken.jpg").write_bytes(b"no image")
  (tmp_path / "a.mp4").write_bytes(b"no video")
  names = dict(empty="empty", picture="a.png", video="a.mp4", other="other/a.png", broken="broken.jpg")
  words = [word.format(**{name: tmp_path / place for name, place in names.items()}) for word in words]
  with pytest.raises(SystemExit) as left:
    cli.main(["predict", f"--output={tmp_path / 'out'}", f"--source={source}", *words])
  error = capsys.readouterr().err
  assert left.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1, error


def test_nothing_that_can_be_read_is_a_failure(source, tmp_path):
  (tmp_path / "a.png").write_bytes(b"nothing")
  parser = predict.argparse.ArgumentParser()
  predict.add_flags(parser)
  flags = parser.parse_args([str(tmp_path), f"--source={source}", f"--output={tmp_path / 'out'}"])
  with pytest.raises(UserError, match=r"a\.png cannot be read"):
    predict.run(flags, [])
