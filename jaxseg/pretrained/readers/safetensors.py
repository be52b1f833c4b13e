"""Hugging Face's `.safetensors`: a JSON header and raw little-endian values.

The `safetensors` library checks the header (bounds, overlaps, sizes); the values are
mapped here, because its NumPy front end has no bfloat16.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors as library
from safetensors.numpy import save

from jaxseg.errors import UserError
from jaxseg.pretrained.readers.dtypes import SAFETENSORS
from jaxseg.pretrained.weights import Weights, collect, meta_of_ours

# Our config.json once more inside the file, so that the file alone is enough.
METADATA = "jaxseg"


def read(path: pathlib.Path) -> Weights:
  """Every tensor of the file, bit for bit.

  Raises:
    UserError: a damaged file, or an element type without a NumPy counterpart.
  """
  data = path.read_bytes()
  try:
    entries = library.deserialize(data)
  except library.SafetensorError as error:
    raise UserError(f"{path} is cut short or damaged ({error}); download it again") from None
  # Values lie in the file by offset; names keep the header's order, which the library does not.
  header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
  order = {name: i for i, name in enumerate(header)}
  arrays = {}
  for name, entry in sorted(entries, key=lambda item: order[item[0]]):
    if entry["dtype"] not in SAFETENSORS:
      raise UserError(f"{path}: {name} has element type {entry['dtype']}; known: {', '.join(SAFETENSORS)}")
    dtype = np.dtype(SAFETENSORS[entry["dtype"]])
    arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
  ours = header.get("__metadata__", {}).get(METADATA)
  return collect(arrays, path, meta=meta_of_ours(json.loads(ours)) if ours else None)


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray], *, config: Mapping[str, Any]) -> None:
  """Writes arrays under their names, with `config` as metadata; a whole file or none."""
  data = save({name: np.ascontiguousarray(v) for name, v in tensors.items()}, {METADATA: json.dumps(config)})
  part = path.with_name(path.name + ".part")
  part.write_bytes(data)
  part.replace(path)
