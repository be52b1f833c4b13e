"""An exported file against the model that it was made of, on a few images."""

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg.classes import as_label
from jaxseg.errors import UserError, printable
from jaxseg.export.program import Program
from jaxseg.hub import Net
from jaxseg.hub.comparison import Comparison

_RUNNERS = pathlib.Path(__file__).parent / "runners"
# Of an open size: odd ones, too.
_SIZES = ((128, 160), (97, 129), (97, 129))


def pictures(size: tuple[int, int] | None, *, channels: int = 3) -> list[UInt8[np.ndarray, "_ _ c"]]:
  """Three drawn ones: soft colours with sharp shapes and grain, so that every layer has something to do."""
  return [_draw(i, *shape, channels) for i, shape in enumerate([size] * 3 if size else _SIZES)]


def _draw(seed: int, rows: int, columns: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
  random = np.random.default_rng(seed)
  y, x = np.mgrid[0:rows, 0:columns] / max(rows, columns)
  waves = [np.sin(random.uniform(2, 12) * x + random.uniform(2, 12) * y + c) for c in range(channels)]
  image = 128 + 70 * np.stack(waves, -1)
  for _ in range(6):
    centre, radius = random.uniform(0, 1, 2), random.uniform(0.05, 0.2)
    image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = random.uniform(0, 255, channels)
  image += random.normal(0, 8, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def compare(
  net: Net, program: Program, runner: str, file: pathlib.Path, images: Sequence[UInt8[np.ndarray, "_ _ c"]]
) -> Comparison:
  """Runs the file in a process of its own, which has no jaxseg, and `net` on the same images.

  Raises:
    UserError: the runtime is not installed, or refuses the file.
  """
  found, seconds = run(runner, file, images, batch=program.shape[0])
  equal, differences, ours = [], [], []
  for image, result in zip(images, found, strict=True):
    wanted, seconds_of_net = _of_net(net, program, image)
    if program.output == "probabilities":
      differences.append(float(np.abs(result - wanted).max()))
      decide = (lambda p: as_label(p >= 0.5)) if net.info.multi_label else (lambda p: p.argmax(-1))
      result, wanted = decide(result), decide(wanted)
    equal.append(float((result == wanted).mean()))
    ours.append(seconds_of_net)
  return Comparison(
    labels_equal=min(equal),
    largest_difference=max(differences) if differences else None,
    images=len(images),
    seconds=float(seconds[0]),
    seconds_of_net=ours[0],
    bytes=file.stat().st_size,
  )


def labels_kept(net: Net, rounded: Net, images: Sequence[UInt8[np.ndarray, "_ _ c"]]) -> float:
  """The share of pixels, the least of all images, whose class is the same of both."""
  return min(float((net.predict(image) == rounded.predict(image)).mean()) for image in images)


def run(
  runner: str, file: pathlib.Path, images: Sequence[np.ndarray], *, batch: int | str = 1
) -> tuple[list[np.ndarray], Float[np.ndarray, " n"]]:
  """(what the file gives for each image, seconds for each), of a process without jaxseg.

  Args:
    runner: a script of `jaxseg.export.runners`.
    file: the model file.
    images: uint8 h w c.
    batch: how often the file wants each image; a name is once.

  Raises:
    UserError: the runtime is not installed, or refuses the file.
  """
  repeats = batch if isinstance(batch, int) else 1
  with tempfile.TemporaryDirectory() as folder:
    source, target = pathlib.Path(folder) / "images.npz", pathlib.Path(folder) / "results.npz"
    np.savez(source, **{f"image{i}": np.repeat(x[None], repeats, 0) for i, x in enumerate(images)})
    # Isolated: no folder of ours on the path.
    words = [sys.executable, "-I", str(_RUNNERS / runner), str(file), str(source), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
      missing = done.stderr.strip().rsplit("\n", 1)[-1].rsplit(" ", 1)[-1].strip("'")
      raise UserError(f"the file is run by {missing}, which is not installed; pip install 'jaxseg[export]'")
    if done.returncode:
      reason = printable((done.stderr.strip() or f"exit code {done.returncode}").rsplit("\n", 1)[-1])
      raise UserError(
        f"the exported file is refused by its runtime ({reason}), so nothing is kept; choose another format"
      )
    with np.load(target) as results:
      return [results[f"image{i}"][0] for i in range(len(images))], results["seconds"]


def _of_net(net: Net, program: Program, image: UInt8[np.ndarray, "h w c"]) -> tuple[np.ndarray, float]:
  """What the model gives, and the seconds of the quickest of three runs after the first, as for the file."""
  call = (
    net.predict if program.output == "labels" else lambda image: np.asarray(program.reference(image[None]))[0]
  )
  times = []
  for _ in range(4):
    start = time.perf_counter()
    result = call(image)
    times.append(time.perf_counter() - start)
  return result, min(times[1:])
