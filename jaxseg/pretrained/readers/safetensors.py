"""Hugging Face's `.safetensors`: a JSON header and raw little-endian values."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors as library
from safetensors.numpy import save

from jaxseg.errors import UserError
from jaxseg.pretrained.schema import meta_of_ours, parse_json
from jaxseg.pretrained.untrusted import shown
from jaxseg.pretrained.weights import Weights, collect

# Our config.json once more inside the file, so that the file alone is enough.
METADATA = "jaxseg"
# The library's own limit is 100 MB; the longest published header has 0.2.
_MAX_HEADER = 16 << 20
_UNREAD = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")  # NumPy has no such numbers


def read(path: pathlib.Path) -> Weights:
  """Every tensor of the file, bit for bit; the `safetensors` library checks bounds, overlaps and sizes.

  Raises:
    UserError: a damaged file, a name that stands twice, or an element type without a NumPy counterpart.
  """
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length) if length <= _MAX_HEADER else b""
  if not text:
    raise UserError(f"{path} states a header of {length} bytes, expected at most {_MAX_HEADER}")
  header = parse_json(text, path)
  arrays = {}
  with library.safe_open(path, "np") as tensors:
    # Names keep the header's order, which the library does not.
    for name in header:
      if name != "__metadata__":
        if (kind := tensors.get_slice(name).get_dtype()) in _UNREAD:
          raise UserError(f"{path}: '{shown(name)}' has the element type {kind}; save it as float32")
        arrays[name] = tensors.get_tensor(name)
    ours = (tensors.metadata() or {}).get(METADATA)
  return collect(arrays, path, meta=meta_of_ours(parse_json(ours, path), path) if ours else None)


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray], *, config: Mapping[str, Any]) -> None:
  """Writes arrays under their names, with `config` as metadata; a whole file or none."""
  data = save({name: np.ascontiguousarray(v) for name, v in tensors.items()}, {METADATA: json.dumps(config)})
  part = path.with_name(path.name + ".part")
  part.write_bytes(data)
  part.replace(path)
