"""NumPy's `.npz`: an archive of plain arrays."""

import io
import math
import pathlib

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.readers.archive import Archive
from jaxseg.pretrained.untrusted import shown
from jaxseg.pretrained.weights import Weights, collect

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read(path: pathlib.Path) -> Weights:
  """Every array of the archive, under its name there.

  Raises:
    UserError: an array of Python objects (it would have to be unpickled).
  """
  arrays = {}
  with Archive(path, stored_only=False) as archive:
    for name in archive.names_in_order:
      data = archive.read(name)
      file = io.BytesIO(data)
      version = np.lib.format.read_magic(file)
      if version not in _HEADERS:
        raise UserError(f"{path}: '{shown(name)}' has an unknown NumPy format; save plain arrays")
      shape, fortran, dtype = _HEADERS[version](file)
      if dtype.kind not in "biufcV" or dtype.names:
        raise UserError(f"{path} holds Python objects or text, which are never unpickled; save plain arrays")
      flat = np.frombuffer(data, dtype, math.prod(shape), file.tell())
      arrays[name.removesuffix(".npy")] = flat.reshape(shape, order="F" if fortran else "C")
  return collect(arrays, path)
