"""Runs an exported LiteRT model: MODEL IMAGES.npz RESULTS.npz. Needs ai-edge-litert alone."""

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

model, images, results = sys.argv[1:]
run = Interpreter(model_path=model).get_signature_runner()
found, seconds = {}, []
for name, image in np.load(images).items():
  times = []
  for _ in range(4):
    start = time.perf_counter()
    (found[name],) = run(image=image).values()
    times.append(time.perf_counter() - start)
  seconds.append(min(times[1:]))
assert "jax" not in sys.modules
np.savez(results, seconds=seconds, **found)
