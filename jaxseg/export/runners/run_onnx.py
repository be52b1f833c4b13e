"""Runs an exported ONNX model: MODEL IMAGES.npz RESULTS.npz. Needs onnxruntime alone."""

import sys
import time

import numpy as np
import onnxruntime

model, images, results = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
found, seconds = {}, []
for name, image in np.load(images).items():
  times = []
  for _ in range(4):
    start = time.perf_counter()
    found[name] = session.run(None, {"image": image})[0]
    times.append(time.perf_counter() - start)
  seconds.append(min(times[1:]))
assert "jax" not in sys.modules
np.savez(results, seconds=seconds, **found)
