"""One tiny run of the drawn scenes, which the tests of this folder damage."""

import pytest

from jaxseg import cli


@pytest.fixture(scope="session")
def run(tmp_path_factory):
  """A workdir of two steps, evaluated."""
  folder = tmp_path_factory.mktemp("hostile") / "run"
  words = ["--config.compilation_cache=off", "--config.log.panel_every_steps=0"]
  cli.main(["train", "--config=colour_only_synthetic:smoke", f"--workdir={folder}", *words])
  return folder
