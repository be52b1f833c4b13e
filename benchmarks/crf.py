r"""Fully-connected CRF: time and memory of `jaxseg.crf.mean_field`, against pydensecrf where there is one.

  python benchmarks/crf.py                                       # lattice, 500x375, 21 classes, 10 steps
  python benchmarks/crf.py --peer_python=VENV/bin/python          # alternating with pydensecrf of that venv
  python benchmarks/crf.py --image=photo.jpg --sxy=67 --srgb=3
  python benchmarks/crf.py --method=exact --rounds=1              # minutes on a CPU; the point is the memory

Both sides count the construction of their lattice; compilation, which comes once a
size, is reported apart. pydensecrf 1.0rc3 does not build with Cython 3 or from its
own generated C++ on Python 3.11 and later: delete that C++ and build with Cython 0.29.
"""

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

PEER = """
import sys, time, numpy as np, pydensecrf.densecrf as crf
case = np.load(sys.argv[1])
image, unary = case["image"], case["unary"]
(sxy, srgb, w1), (smooth, w2), steps = case["appearance"], case["smoothness"], int(case["steps"])
h, w, k = unary.shape
flat = np.ascontiguousarray(unary.transpose(2, 0, 1).reshape(k, -1))
start = time.perf_counter()
d = crf.DenseCRF2D(w, h, k)
d.setUnaryEnergy(flat)
d.addPairwiseGaussian(sxy=float(smooth), compat=float(w2))
d.addPairwiseBilateral(sxy=float(sxy), srgb=float(srgb), rgbim=image, compat=float(w1))
q = np.array(d.inference(steps))
print(time.perf_counter() - start)
np.save(sys.argv[2], q.reshape(k, h, w).argmax(0))
"""


def picture(height: int, width: int, seed: int) -> np.ndarray:
  """uint8 h w 3: soft regions of colour with texture and sensor noise, so that no picture need be shipped."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width].astype(np.float32)
  image = np.full((height, width, 3), 120.0, np.float32)
  for _ in range(24):
    radius = rng.uniform(20, 120)
    inside = (y - rng.uniform(0, height)) ** 2 + (x - rng.uniform(0, width)) ** 2 < radius**2
    image[inside] = rng.uniform(0, 255, 3)
  shade = np.sin(x / 40 + rng.uniform(0, 6)) * np.cos(y / 55 + rng.uniform(0, 6))
  image += 20 * shade[..., None] + rng.normal(0, 6, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8)


def unary_of(height: int, width: int, classes: int, seed: int) -> np.ndarray:
  """Negative log probabilities h w k, constant over 16×16 blocks: a network's coarse output."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=(-(-height // 16), -(-width // 16), classes))
  logits = logits.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
  return (np.log(np.exp(logits).sum(-1, keepdims=True)) - logits).astype(np.float32)


def read(path: str) -> np.ndarray:
  """An image file as uint8 RGB h w 3."""
  import cv2

  image = cv2.imread(path)
  if image is None:
    raise SystemExit(f"--image={path} cannot be read as an image")
  return np.ascontiguousarray(image[..., ::-1])


def peer_round(python: str, case: pathlib.Path) -> tuple[float, np.ndarray] | None:
  """Seconds and labels of pydensecrf in the interpreter `python`, or None when it has no pydensecrf."""
  labels = case.with_name("labels.npy")
  done = subprocess.run([python, "-c", PEER, case, labels], capture_output=True, text=True, check=False)
  if done.returncode:
    if "No module named 'pydensecrf'" in done.stderr:
      return None
    raise SystemExit(f"pydensecrf failed in {python}:\n{done.stderr}")
  return float(done.stdout), np.load(labels)


def main() -> None:
  """Runs the rounds and prints one line each, then the best of both sides."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--method", choices=("lattice", "exact"), default="lattice")
  parser.add_argument("--size", default="500x375", help="HxW of the made picture")
  parser.add_argument("--image", default="", help="a picture instead; its size counts")
  parser.add_argument("--classes", type=int, default=21)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--sxy", type=float, default=50.0)
  parser.add_argument("--srgb", type=float, default=10.0)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--peer_python", default=sys.executable, help="an interpreter that has pydensecrf")
  args = parser.parse_args()

  height, width = map(int, args.size.split("x"))
  image = read(args.image) if args.image else picture(height, width, seed=0)
  height, width, _ = image.shape
  unary = unary_of(height, width, args.classes, seed=1)
  kernels = ((3.0, None, 3.0), (args.sxy, args.srgb, 4.0))

  import jax

  from jaxseg.crf import lattice_sizes, mean_field

  def ours() -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    q = jax.block_until_ready(mean_field(unary, image, kernels, args.steps, args.method))
    return time.perf_counter() - start, np.argmax(q, axis=-1)

  print(f"{height}x{width}, {args.classes} classes, {args.steps} steps, {args.method}, {jax.devices()[0]}")
  print(f"lattice vertices: {lattice_sizes(image, kernels)}")
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  rounds, peers = [], []
  if args.method == "lattice":
    print(f"first call, with compilation: {ours()[0]:.2f} s")
  with tempfile.TemporaryDirectory() as folder:
    case = pathlib.Path(folder) / "case.npz"
    appearance, smoothness = (args.sxy, args.srgb, 4.0), (3.0, 3.0)
    np.savez(case, image=image, unary=unary, appearance=appearance, smoothness=smoothness, steps=args.steps)
    for number in range(args.rounds):
      seconds, labels = ours()
      rounds.append(seconds)
      line = f"round {number + 1}: jaxseg {seconds:.2f} s"
      peer = peer_round(args.peer_python, case) if args.method == "lattice" else None
      if peer is not None:
        peers.append(peer[0])
        line += f", pydensecrf {peer[0]:.2f} s, equal labels {np.mean(peer[1] == labels):.4%}"
      print(line, flush=True)
  print(f"best: jaxseg {min(rounds):.2f} s", end="")
  if peers:
    print(f", pydensecrf {min(peers):.2f} s, ratio {min(rounds) / min(peers):.2f}", end="")
  elif args.method == "lattice":
    print(f"; {args.peer_python} has no pydensecrf, so there is nothing to compare with", end="")
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  print(f"\npeak memory of the process: {peak:.0f} MiB ({before:.0f} MiB before the first call)")


if __name__ == "__main__":
  main()
