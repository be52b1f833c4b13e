"""Weight files → named NumPy arrays; a file is data, and nothing in it is executed.

The format is told by the first bytes, not by the file's ending: `.pth` files that are
really safetensors, or a web page saved in place of the weights, are common.
"""

import difflib
import pathlib
import zipfile

from jaxseg.errors import UserError
from jaxseg.pretrained.readers import npz, safetensors, torch
from jaxseg.pretrained.untrusted import reading
from jaxseg.pretrained.weights import Weights

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".pdparams", ".pkl")


def read_file(path: str | pathlib.Path) -> Weights:
  """The tensors of one weight file, with what the file says about itself.

  Args:
    path: a safetensors, NumPy `.npz` or PyTorch file (zip or the older format), under any name.

  Raises:
    UserError: no such file, a format or content that cannot be weights, or a damaged file.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise UserError(f"there is no file {str(path)!r}{_nearest(path)}")
  if not path.is_file():
    raise UserError(f"{path} is not a regular file; give a weight file or a directory that holds one")
  with reading(path):
    with path.open("rb") as file:
      head = file.read(512)
    return _reader(path, head)(path)


def _reader(path: pathlib.Path, head: bytes):
  text = head.lstrip().lower()
  if not head:
    raise UserError(f"{path} is empty; download it again")
  if text.startswith(b"version https://git-lfs"):
    raise UserError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its repository")
  if text.startswith((b"<!doctype", b"<html", b"<?xml")):
    raise UserError(f"{path} is a web page, not weights; download the file itself, not the page about it")
  if head.startswith(b"PK"):
    return _zip_reader(path)
  if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
    return safetensors.read
  if head.startswith(b"\x80"):
    return torch.read
  short = f", and has only {len(head)} bytes: was it cut short?" if len(head) < 16 else ""
  raise UserError(
    f"{path} is not a weight file this library reads (it begins with {head[:8]!r}{short});"
    f" known: safetensors, .npz, PyTorch's .pth/.pt/.bin"
  )


def _zip_reader(path: pathlib.Path):
  try:
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
  except Exception:  # a damaged directory can also look like an unknown zip version
    raise UserError(
      f"{path} is cut short or damaged (its zip directory is missing); download it again"
    ) from None
  return npz.read if names and all(name.endswith(".npy") for name in names) else torch.read


def _nearest(path: pathlib.Path) -> str:
  folder = path.parent
  if not folder.is_dir():
    return f"; the folder {str(folder)!r} does not exist either"
  names = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES or p.is_dir())
  close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
  return f"; did you mean {str(folder / close[0])!r}?" if close else ""
