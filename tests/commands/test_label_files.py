"""Files for test servers: read back they are the predictions, under the names that the servers look for."""

import fnmatch
import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxseg import cli, data
from jaxseg.commands import label_files
from jaxseg.config import record
from jaxseg.data import ade20k, cityscapes, reading, voc
from jaxseg.data.source import make_info
from jaxseg.errors import UserError

INFOS = {
  "cityscapes": make_info("cityscapes", cityscapes.CLASSES, cityscapes.PALETTE),
  "ade20k": make_info("ade20k", ade20k.CLASSES, ade20k.PALETTE),
  "voc": make_info("voc", voc.CLASSES, voc.PALETTE),
}


def test_folders_of_other_images(tmp_path):
  """Read as the data are: by the range of values and the number of channels; rows as they are stored."""
  deep = np.random.default_rng(0).integers(0, 1000, (40, 48, 5)).astype(np.uint16)
  np.save(tmp_path / "a.npy", deep)
  (path,) = label_files.find_pictures(str(tmp_path))
  rule = reading.Rule((0.0, 1000.0), channels=5)
  ((name, image),) = label_files.folder_pictures([path], str(tmp_path), rule)
  assert name == "a.npy" and str(label_files.file_name(name, "folder")) == "a.png"
  np.testing.assert_array_equal(image, np.floor(deep * 0.255 + 0.5))
  Image.fromarray(deep[..., 0]).save(tmp_path / "b.png")
  with pytest.raises(UserError, match=r"b.png holds uint16 values from"):
    list(label_files.folder_pictures([str(tmp_path / "b.png")], str(tmp_path)))


def written(tmp_path, dataset, names):
  info = INFOS[dataset]
  rng = np.random.default_rng(0)
  labels = {name: rng.integers(0, info.num_classes, (20 + i, 30)) for i, name in enumerate(names)}
  left = iter(labels.values())
  done = label_files.write_labels(
    tmp_path,
    ((name, np.zeros((1, 1, 3), np.uint8)) for name in names),
    predict=lambda image: next(left),
    info=info,
    write=True,
    progress=lambda n: None,
  )
  assert done == len(names)
  return labels


def test_cityscapes(tmp_path):
  names = ["berlin/berlin_000000_000019_leftImg8bit.png", "frankfurt_000000_000294"]
  labels = written(tmp_path, "cityscapes", names)
  files = sorted(path.name for path in tmp_path.rglob("*.png"))
  for name, pattern in zip(names, ("berlin_000000_000019*.png", "frankfurt_000000_000294*.png"), strict=True):
    (found,) = fnmatch.filter(files, pattern)
    picture = Image.open(tmp_path / found)
    assert picture.mode == "L"
    ids = np.asarray(picture)
    assert set(np.unique(ids)) <= set(cityscapes.LABEL_IDS)
    back = np.vectorize(cityscapes.LABEL_MAP.get)(ids)
    np.testing.assert_array_equal(back, labels[name])


def test_ade20k(tmp_path):
  labels = written(tmp_path, "ade20k", ["ADE_test_00000001.jpg"])
  ids = np.asarray(Image.open(tmp_path / "ADE_test_00000001.png"))
  assert ids.min() >= 1 and ids.max() <= 150
  np.testing.assert_array_equal(ids.astype(int) - 1, labels["ADE_test_00000001.jpg"])


def test_voc(tmp_path):
  labels = written(tmp_path, "voc", ["2008_000006"])
  picture = Image.open(tmp_path / "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png")
  assert picture.mode == "P"
  np.testing.assert_array_equal(np.asarray(picture), labels["2008_000006"])
  colours = np.asarray(picture.convert("RGB"))
  np.testing.assert_array_equal(colours, np.asarray(voc.PALETTE)[labels["2008_000006"]])


def test_two_pictures_of_one_name(tmp_path):
  with pytest.raises(UserError, match=r"'a/x.jpg' and 'b/x.png' would both be written as 'x.png'"):
    written(tmp_path, "ade20k", ["a/x.jpg", "b/x.png"])


def test_names_stay_below_the_folder():
  assert str(label_files.file_name("/../../etc/x.jpg", "folder")) == "etc/x.png"


def test_the_files_of_eval_are_its_predictions(smoke_run, tmp_path, capsys):
  cli.main(
    ["eval", f"--workdir={smoke_run}", f"--output={tmp_path}", f"--output_labels={tmp_path / 'labels'}"]
  )
  assert "3 label maps in" in capsys.readouterr().out
  report = json.loads((tmp_path / "report.json").read_text())
  source = data.open_split(record.read_config(smoke_run).data, "val")
  matrix = np.zeros(np.shape(report["matrix"]), np.int64)
  for i in range(len(source)):
    example = source[i]
    ids = np.asarray(Image.open(tmp_path / "labels" / f"{example['id']}.png"))
    known = example["label"] != 255
    np.add.at(matrix, (example["label"][known], ids[known]), 1)
  assert matrix.tolist() == report["matrix"]
  # The same picture without its label, from a folder.
  (tmp_path / "test").mkdir()
  Image.fromarray(source[0]["image"]).save(tmp_path / "test" / "one.png")
  cli.main(
    [
      "eval",
      f"--workdir={smoke_run}",
      f"--images={tmp_path / 'test'}",
      f"--output_labels={tmp_path / 'more'}",
    ]
  )
  one, same = (tmp_path / "more" / "one.png").read_bytes(), tmp_path / "labels" / f"{source[0]['id']}.png"
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(one))), np.asarray(Image.open(same)))


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (["--images=pictures"], "--images needs --output_labels=DIR"),
    (["--images=no/such", "--output_labels=out"], "--images 'no/such' is no folder"),
    (["--config.eval.class_map=((0,99),)"], "config.eval.class_map has (0, 99), but the data has"),
    (["--config.eval.absent_classes=none"], "config.eval.absent_classes"),
  ],
)
def test_bad_input_is_one_sentence(smoke_run, tmp_path, monkeypatch, capsys, words, sentence):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stopped:
    cli.main(["eval", f"--workdir={smoke_run}", *words])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1, error
