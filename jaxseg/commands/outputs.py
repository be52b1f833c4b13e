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
  bucket.reach(path)
  folder = epath.Path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{uuid.uuid4().hex}.part"
    try:
      probe.write_text("probe\n")
    finally:
      probe.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(
      f"{str(path)!r} cannot be written ({error.strerror or error}); choose another {flag}"
    ) from None
  return folder


def try_file(path: epath.PathLike, *, flag: str) -> epath.Path:
  """`try_folder` of the folder of a file.

  Raises:
    UserError: it cannot be written, or the file is a folder.
  """
  file = epath.Path(path)
  if file.is_dir():
    raise UserError(f"{flag} {str(path)!r} is a folder; give a file")
  try_folder(file.parent, flag=flag)
  return file


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
