"""The logs: what is kept of them, and when they are written."""

import pytest
from etils import epath

from jaxseg.train import logging
from jaxseg.train.metrics import MetricsLog


def test_lines_that_cannot_be_read_are_cut(tmp_path):
  whole = b'{"step": 1, "loss": 0.5}\n'
  broken = b'{"step": 2, "lo\xff\xfe": 1}\n\xff\x00\n[2]\n7\n{"step": null}\n'
  (tmp_path / "metrics.jsonl").write_bytes(whole + broken)
  MetricsLog(tmp_path, resume_step=9)
  assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_log_in_a_bucket_is_written_where_it_matters(monkeypatch):
  files, failing = {}, []

  class Bucket(type(epath.Path("gs://bucket/run"))):
    def exists(self):
      return str(self) in files

    def write_text(self, text, **_):
      if failing:
        raise RuntimeError("403: the account is closed")
      files[str(self)] = text

    def replace(self, target):
      files[str(target)] = files.pop(str(self))

  monkeypatch.setattr(logging.epath, "Path", Bucket)
  log, at = MetricsLog("gs://bucket/run", resume_step=0), "gs://bucket/run/metrics.jsonl"
  for step in (1, 2):
    log.write(step, {"loss": 1.0})
    log.flush()
  assert files[at] == ""
  log.flush(force=True)
  log.write(2, {"mIoU": 0.5})
  log.flush(force=True)
  assert files[at] == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0, "mIoU": 0.5}\n'
  failing.append(True)
  log.write(3, {"loss": 1.0})
  with pytest.raises(ValueError, match=r"cannot be written \(403: the account is closed\); make"):
    log.flush(force=True)
