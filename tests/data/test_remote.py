"""Data on a bucket: what cannot be read is one sentence, before anything waits for it."""

import ml_collections
import pytest

from jaxseg import bucket, data
from jaxseg.data import DataError


def config(**changes):
  fields = dict(name="camvid", data_dir="", manual_dir="", classes=(), image_size=(64, 64), num_train=2)
  return ml_collections.ConfigDict({**fields, **changes})


def test_prepared_data_are_read_from_a_disk():
  sentence = (
    "data.data_dir is 'gs://b/x', but prepared data are written to and read from a disk; copy it to each host"
    r" \(gcloud storage rsync --recursive gs://b/x FOLDER\) or mount the bucket"
  )
  with pytest.raises(DataError, match=sentence):
    data.open_split(config(data_dir="gs://b/x"), "train")
  with pytest.raises(DataError, match=sentence):
    data.prepare(config(data_dir="gs://b/x"))
  assert len(data.open_split(config(name="synthetic", data_dir="gs://b/x"), "train")) == 2, "drawn, not read"


@pytest.mark.parametrize("use", [data.dataset_info, data.prepare, lambda c: data.open_split(c, "train")])
def test_original_files_on_a_bucket_that_does_not_answer(monkeypatch, use):
  def reach(path):
    raise ValueError(f"{path} did not answer for 30 s")

  monkeypatch.setattr(bucket, "reach", reach)
  with pytest.raises(DataError, match=r"data.manual_dir is 'gs://b/y', and gs://b/y did not answer.*rsync"):
    use(config(manual_dir="gs://b/y"))
