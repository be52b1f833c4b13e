"""What reference implementations give for made weights and made images, small enough to be in every clone.

`NAME.json` lists the tensors of the original PyTorch state dict, `NAME.npz` holds what the implementation
that NAME begins with (mmsegmentation 1.2.2, transformers, kazuto1011/deeplab-pytorch) gives for them.
Weights and images are drawn from the names and a seed and are not stored. Of a large output only every n-th
pixel is stored, with all of its channels (`reduce.py` writes them from the full outputs).
"""

import dataclasses
import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
CASES = sorted(path.stem for path in FOLDER.glob("*-*.json"))


@dataclasses.dataclass(frozen=True)
class Sample:
  """Every `step`-th pixel, in the order of b, h, w, of an output of `shape` b h w k."""

  values: np.ndarray
  step: int
  shape: tuple[int, ...]

  def of(self, output: np.ndarray) -> np.ndarray:
    """The same pixels of another implementation's output."""
    output = np.asarray(output)
    assert output.shape == self.shape, f"shape {output.shape}, the reference has {self.shape}"
    return take(output, self.step)


def take(output: np.ndarray, step: int) -> np.ndarray:
  """Every `step`-th pixel: (b, h, w, k) → (n, k)."""
  return output.reshape(-1, output.shape[-1])[::step]


def load(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Sample | np.ndarray]]:
  """State dict, images (b, h, w, 3) already normalised, and outputs by name.

  Maps of pixels are `Sample`s, everything else (losses, statistics, labels) is stored in full.
  """
  meta = json.loads((FOLDER / f"{name}.json").read_text())
  state = {tensor: draw_tensor(tensor, tuple(shape), meta["seed"]) for tensor, shape in meta["tensors"]}
  outputs = dict(np.load(FOLDER / f"{name}.npz"))
  for key, (step, shape) in meta["samples"].items():
    outputs[key] = Sample(outputs[key], step, tuple(shape))
  return state, draw_image(tuple(meta["input"]), meta["seed"]), outputs


def describe(name: str) -> dict:
  """The case's own words: its recipe of training, its note."""
  return json.loads((FOLDER / f"{name}.json").read_text())


def draw_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
  """The value of the parameter or buffer `name`: float32, int64 for a counter.

  Every tensor has a generator of its own, seeded by its name, so that the reference and ours can be filled
  with the same values.
  """
  rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode())))
  match name.rsplit(".", 1)[-1]:
    case "num_batches_tracked":
      return np.zeros(shape, np.int64)
    case "running_var":
      return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    case "running_mean":
      return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    case "bases":  # of an NMF, (1, d, r): not negative, unit norm over d
      bases = rng.uniform(0.0, 1.0, shape)
      return (bases / np.linalg.norm(bases, axis=1, keepdims=True)).astype(np.float32)
    case leaf if leaf.startswith("layer_scale"):  # small: gated attention is quadratic in its input
      return rng.uniform(0.02, 0.08, shape).astype(np.float32)
    case "weight" if len(shape) <= 1:  # scales of norms, slopes of PReLU
      return rng.uniform(0.3, 1.2, shape).astype(np.float32)
    case leaf if leaf == "bias" or len(shape) <= 1:
      return (0.1 * rng.standard_normal(shape)).astype(np.float32)
  fan_in = int(np.prod(shape[1:]))
  return (rng.standard_normal(shape) * (1.3 / fan_in) ** 0.5).astype(np.float32)


def draw_image(shape: tuple[int, ...], seed: int) -> np.ndarray:
  """A float32 batch (b, h, w, 3) of noise."""
  rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:image".encode())))
  return rng.standard_normal(shape).astype(np.float32)
