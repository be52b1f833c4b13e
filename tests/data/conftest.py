"""The real CamVid, prepared once a run."""

import pytest

from tests.data import miniature


@pytest.fixture(scope="session")
def real_camvid(shared, tmp_path_factory):
  """`config.data` for ../shared's copy."""
  return miniature.settings(
    "camvid",
    manual_dir=str(shared / "data" / "camvid"),
    data_dir=str(tmp_path_factory.mktemp("camvid")),
  )
