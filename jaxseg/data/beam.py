"""Preparing through Apache Beam (the `beam` extra): shards written in parallel, on any runner."""

import contextlib
import re
from collections.abc import Iterator, Sequence

import apache_beam as beam
import tensorflow_datasets as tfds

from jaxseg.data.source import DataError


def configure(
  settings: tfds.download.DownloadConfig, runner: str, options: Sequence[str]
) -> tfds.download.DownloadConfig:
  """The settings with Beam in them.

  Args:
    settings: of `download_and_prepare`.
    runner: Beam's name of it, "DirectRunner".
    options: Beam's own flags, as ("--direct_num_workers=4", ...).

  Raises:
    DataError: Beam knows no such runner.
  """
  try:
    beam.runners.create_runner(runner)
  except (ValueError, ImportError, AttributeError) as error:
    raise DataError(
      f"Apache Beam has no runner {runner!r} ({error}); DirectRunner is on any machine"
    ) from None
  return settings.replace(
    beam_runner=runner, beam_options=beam.options.pipeline_options.PipelineOptions(list(options))
  )


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
  """A worker's DataError as itself; Beam passes on its text, wrapped into its own error."""
  try:
    yield
  except Exception as error:
    # Workers in this process raise it as it was, with the step's name after it.
    start = "" if isinstance(error, DataError) else "DataError: "
    found = re.search(rf"{start}(.*?)(?: \[while running|$)", str(error), re.DOTALL)
    if found is None:
      raise
    raise DataError(found.group(1).strip()) from None
