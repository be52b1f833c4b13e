"""Folders of prepared data: where they are, and what is wrong with them in one sentence."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from jaxseg import bucket
from jaxseg.data import images
from jaxseg.data.source import DataError
from jaxseg.errors import UserError

# Where prepared data goes when `data_dir` is "".
DATA_DIR_VARIABLE = "JAXSEG_DATA_DIR"
DEFAULT_DATA_DIR = "~/.cache/jaxseg/datasets"


def data_root(data_dir: str) -> epath.Path:
  """`data_dir`, else $JAXSEG_DATA_DIR, else ~/.cache/jaxseg/datasets."""
  root = epath.Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR).expanduser()
  if os.fspath(root).startswith("~"):
    raise DataError(
      f"{os.fspath(root)!r} is below a home folder, and this user has none; set data.data_dir or"
      f" {DATA_DIR_VARIABLE} to a folder for prepared data"
    )
  return root


@contextlib.contextmanager
def reading(folder: epath.PathLike) -> Iterator[None]:
  """What TFDS raises over damaged files, which is whatever their damage leads to, as one sentence."""
  try:
    yield
  except DataError:
    raise
  except Exception as error:
    raise DataError(
      f"prepared data in {os.fspath(folder)} cannot be read ({images.one_line(error)}); delete that folder"
      " and they are prepared again"
    ) from error


@contextlib.contextmanager
def writing(folder: epath.Path) -> Iterator[None]:
  """A folder without rights or room, or that cannot be one, as one sentence."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # a writer in C++ has a type of its own for a full disk
    known = isinstance(error, OSError) or (isinstance(error, ValueError) and "null byte" in str(error))
    reason = getattr(error, "strerror", None) or images.one_line(error) if known else None
    reason = reason or bucket.why_unwritable(folder, error)
    if reason is None:
      raise
    raise DataError(
      f"prepared data cannot be written to {os.fspath(folder)!r} ({reason}); make room, or set"
      f" data.data_dir or {DATA_DIR_VARIABLE} to another folder"
    ) from error


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[None]:
  """Holds the folder against other processes of this machine.

  Object stores have no locks. There each writer fills its own temporary folder, and
  one of the finished ones takes the final name.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = os.fspath(folder / ".lock")
  if "://" in path:
    yield
    return
  import fcntl  # POSIX only, like the TPU hosts; not needed for reading

  with open(path, "w") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
