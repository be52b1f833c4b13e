r"""Writes the cases of this folder from full outputs: python -m tests.parity_cases.reduce FOLDER.

FOLDER holds `NAME.json` with the tensors of a state dict and the shape of the images, and `NAME.npz` with
all that the reference implementation gives.
"""

import json
import pathlib
import sys

import numpy as np

from tests.parity_cases import FOLDER, take

# Of an output, at most; of logits more, since their largest channels are compared pixel by pixel too.
_VALUES, _LOGITS = 12_000, 40_000


def main(folder: pathlib.Path) -> None:
  """Every case of the folder."""
  for path in sorted(folder.glob("*-*.json")):
    meta, outputs, samples = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz"))), {}
    for name, output in outputs.items():
      if output.ndim == 4:
        # Odd, so that it does not keep to one column of a map of even width.
        step = max(output.size // (_LOGITS if "logits" in name else _VALUES), 1) | 1
        samples[name] = (step, output.shape)
        outputs[name] = take(output, step)
    text = json.dumps(meta | {"samples": samples}, separators=(",", ":"))
    (FOLDER / path.name).write_text(text.replace('],["', '],\n["') + "\n")
    np.savez_compressed(FOLDER / f"{path.stem}.npz", **outputs)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
