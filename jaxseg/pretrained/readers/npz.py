"""NumPy's `.npz`: an archive of plain arrays."""

import pathlib

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.weights import Weights, collect


def read(path: pathlib.Path) -> Weights:
  """Every array of the archive, under its name there.

  Raises:
    UserError: an array of Python objects (it would have to be unpickled), or a damaged file.
  """
  arrays = {}
  try:
    with np.load(path, allow_pickle=False) as archive:
      for name in archive.files:
        arrays[name] = archive[name]
  except Exception as error:  # zipfile's, zlib's and NumPy's kinds
    if "allow_pickle" not in str(error):
      raise UserError(f"{path} is cut short or damaged ({error}); download it again") from None
    raise UserError(f"{path} holds Python objects, which are never unpickled; save plain arrays") from None
  return collect(arrays, path)
