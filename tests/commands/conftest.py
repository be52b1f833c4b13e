"""What the commands' tests share: a finished run of two steps."""

import pytest

from jaxseg import cli


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
  """A workdir; tests that write into one copy it."""
  folder = tmp_path_factory.mktemp("smoke") / "run"
  cli.main(["train", "--config=colour_only_synthetic:smoke", f"--workdir={folder}"])
  return folder
