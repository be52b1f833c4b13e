"""A zip archive that cannot be a bomb: what its members may hold is known before any is read."""

import pathlib
import zipfile

from jaxseg.errors import UserError
from jaxseg.pretrained.untrusted import shown

# NumPy can deflate; trained weights shrink by a tenth, never to an eighth.
_MAX_RATIO = 8


class Archive:
  """A zip file's members by name, each read at once; a context manager.

  Args:
    path: the file.
    stored_only: refuse compressed members, which PyTorch never writes.

  Raises:
    UserError: a name that stands twice, a compressed member, or more values than the file can hold.
  """

  def __init__(self, path: pathlib.Path, *, stored_only: bool):
    self._zip = zipfile.ZipFile(path)
    members = self._zip.infolist()
    self.names_in_order = [member.filename for member in members]
    self.names = set(self.names_in_order)
    if len(self.names) < len(members):
      seen = set()
      twice = next(m.filename for m in members if m.filename in seen or seen.add(m.filename))
      raise UserError(f"{path} has two members called '{shown(twice)}'; save the weights again")
    room = path.stat().st_size * (1 if stored_only else _MAX_RATIO) + 65536
    for member in members:
      if stored_only and member.compress_type != zipfile.ZIP_STORED:
        raise UserError(
          f"{path} has the compressed member '{shown(member.filename)}', which PyTorch does not write;"
          " unpack it and zip it again without compression (zip -0)"
        )
      room -= member.file_size
    if room < 0:
      raise UserError(f"{path} states members of more bytes than the file can hold; download it again")

  def read(self, name: str) -> bytes:
    """The bytes of one member; their checksum is checked."""
    return self._zip.read(name)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._zip.close()
