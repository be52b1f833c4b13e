"""`jaxseg check-dataset` and `jaxseg prepare-dataset` from a config to exit codes."""

import pathlib

import pytest

from jaxseg import cli
from tests.data import official

CONFIG = str(pathlib.Path(__file__).resolve().parents[2] / "configs" / "cgnet_m3n21_folder.py")


def test_check_and_prepare(tmp_path, capsys):
  root = tmp_path / "mine"
  for i in range(3):
    official.picture(root / f"images/train/p{i}.jpg", i)
    official.grey(root / f"masks/train/p{i}.png", official.raw_ids(i, (0, 1, 255)))
  data = [
    f"--config={CONFIG}",
    f"--config.data.manual_dir={root}",
    f"--config.data.data_dir={tmp_path / 'prepared'}",
    "--config.data.classes=road,car",
  ]
  cli.main(["check-dataset", *data, "--samples=2", f"--output={tmp_path / 'out'}"])
  out = capsys.readouterr().out
  assert "folder, split train: 2 of 3 examples read" in out and "bad examples: 0" in out
  assert (tmp_path / "out" / "folder-train.png").exists()

  cli.main(["prepare-dataset", *data])
  assert "preparing folder (3 train pairs)" in capsys.readouterr().out
  assert list((tmp_path / "prepared").rglob("dataset_info.json"))

  official.grey(root / "masks/train/p1.png", official.raw_ids(1, (0, 9)))
  with pytest.raises(SystemExit, match="2"):
    cli.main(["check-dataset", *data, f"--output={tmp_path / 'out'}"])
  captured = capsys.readouterr()
  assert "masks/train/p1.png has id 9" in captured.out
  assert (
    captured.err
    == "jaxseg check-dataset: 1 of 3 examples are bad, see above; correct or remove their files\n"
  )
