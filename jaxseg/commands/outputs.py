"""Where a command writes: tried before the work is done, so that no result is lost at the end."""

import uuid

from etils import epath

from jaxseg import bucket
from jaxseg.errors import UserError


def try_folder(path: epath.PathLike, *, flag: str = "--output") -> epath.Path:
  """Makes the folder and writes a byte there.

  Raises:
    UserError: it cannot be written.
  """
  _try(epath.Path(path), f".{uuid.uuid4().hex}.part", path, flag)
  return epath.Path(path)


def try_file(path: epath.PathLike, *, flag: str) -> epath.Path:
  """Makes the file's folder and writes a byte beside the file.

  Raises:
    UserError: it cannot be written, or the file is a folder.
  """
  file = epath.Path(path)
  if file.is_dir():
    raise UserError(f"{flag} {str(path)!r} is a folder; give a file")
  _try(file.parent, f"{file.name}.part", path, flag)
  return file


def _try(folder: epath.Path, name: str, path: epath.PathLike, flag: str) -> None:
  bucket.reach(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / name
    try:
      probe.write_text("probe\n")
    finally:
      probe.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(
      f"{str(path)!r} cannot be written ({error.strerror or error}); choose another {flag}"
    ) from None


def write(path: epath.Path, data: bytes) -> None:
  """Writes a file beside its place and renames it: a kill or a full disk leaves no half file.

  Raises:
    UserError: it cannot be written.
  """
  part = path.with_name(path.name + ".part")
  try:
    part.write_bytes(data)
    part.replace(path)
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be written ({error.strerror or error})") from None
