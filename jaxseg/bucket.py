"""Folders, on a bucket (`gs://`) as well: whether it answers, moves, and why nothing can be written there."""

import contextlib
import errno
import functools
import os
import threading
import uuid
from typing import Any

from etils import epath

from jaxseg.errors import UserError

# Seconds for the first answer; gcsfs alone goes on trying for minutes.
_PATIENCE = 30
# The words of a full disk, which libraries in C++ keep in errors of every type.
_NO_ROOM = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))
_PROBE_BYTES = 1 << 22


def is_remote(path: epath.PathLike) -> bool:
  """Whether the path is an URL (`gs://...`)."""
  return "://" in str(path)


def reach(path: epath.PathLike) -> None:
  """Makes sure that a bucket answers; nothing for a local path.

  Raises:
    UserError: it cannot be reached or read, or what reads it is not installed.
  """
  if is_remote(path):
    scheme, rest = str(path).split("://", 1)
    if not scheme or not rest.split("/", 1)[0]:
      raise UserError(f"{str(path)!r} names no bucket; give gs://BUCKET/FOLDER, or a local folder")
    _reach(scheme, rest.split("/", 1)[0])


def move(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder; on a bucket, file by file."""
  if not is_remote(source):
    source.rename(target)
    return
  # epath.rename wants the folder around the target to exist, which on a bucket it never does.
  _file_system(str(source).split("://", 1)[0]).mv(str(source), str(target), recursive=True)


def why_unwritable(directory: epath.Path, error: Exception) -> str | None:
  """Why `error` was raised in writing to `directory`; None where the place is not the reason.

  Looks for the words of a full disk in the error, then tries to write 4 MiB there.
  """
  text = str(error)
  if found := next((words for words in _NO_ROOM if words in text), None):
    return found
  probe = directory / f"{uuid.uuid4().hex}.part"
  try:
    probe.write_bytes(bytes(_PROBE_BYTES))
  except Exception as problem:  # a bucket's client raises what it likes
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
  finally:
    with contextlib.suppress(Exception):
      probe.unlink()
  return None


@functools.lru_cache
def _reach(scheme: str, bucket: str) -> None:
  problems: list[Exception] = []

  def look() -> None:
    try:
      _file_system(scheme).ls(bucket)
    except Exception as error:  # of HTTP, of aiohttp, of google.auth
      problems.append(error)

  where = f"{scheme}://{bucket}"
  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  thread.join(_PATIENCE)
  if thread.is_alive():
    raise UserError(
      f"{where} did not answer for {_PATIENCE} s; check the network and the credentials"
      " (gcloud auth application-default login)"
    )
  if problems and isinstance(problems[0], ImportError):
    raise UserError(
      f"{where} needs a file system that is not installed; pip install 'jaxseg[tpu]' brings gcsfs"
    )
  if problems:
    reason = " ".join(str(problems[0]).split()) or type(problems[0]).__name__
    raise UserError(
      f"{where} cannot be read ({reason}); check its name, and the credentials"
      " (gcloud auth application-default login)"
    )


def _file_system(scheme: str) -> Any:
  import fsspec

  name = "gcs" if scheme == "gs" else scheme
  # TensorStore and other processes write there too, which a listing kept in memory does not see.
  fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
  return fsspec.filesystem(name)
