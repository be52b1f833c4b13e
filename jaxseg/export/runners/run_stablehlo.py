"""Runs an exported StableHLO program: MODEL IMAGES.npz RESULTS.npz. Needs jax alone."""

import pathlib
import sys
import time

import jax
import numpy as np
from jax import export

model, images, results = map(pathlib.Path, sys.argv[1:])
# A program with open sizes is compiled once for each size.
call = jax.jit(export.deserialize(bytearray(model.read_bytes())).call)
found, seconds = {}, []
for name, image in np.load(images).items():
  times = []
  for _ in range(4):
    start = time.perf_counter()
    found[name] = np.asarray(call(image))
    times.append(time.perf_counter() - start)
  seconds.append(min(times[1:]))
assert "jaxseg" not in sys.modules
np.savez(results, seconds=seconds, **found)
