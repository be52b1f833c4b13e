"""One measurement of PyTorch on its accelerator, for `accelerator.py`: PEERS_FOLDER CASE_JSON.

The model is mmsegmentation's, with autocast to bfloat16 and channels_last, eager or through `torch.compile`.
A training step ends with AdamW's update; inference takes uint8 images and gives label maps.
"""

import json
import math
import sys
import time

import numpy as np

sys.path.insert(0, sys.argv[1])
import torch
import torch.nn.functional as F
from refmodels import ALL


def main() -> None:
  """Prints one RESULT line."""
  case = json.loads(sys.argv[2])
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  training = case["mode"] == "train"
  model = ALL[case["model"]]().to(device, memory_format=torch.channels_last)
  model.train(training)
  shape = (case["batch"], case["rows"], case["columns"])
  rng = np.random.default_rng(0)
  image = torch.from_numpy(rng.integers(0, 256, (case["batch"], 3, *shape[1:]), np.uint8)).to(device)
  label = torch.from_numpy(rng.integers(0, 11, shape)).to(device)
  optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.01)

  def network(image):
    normal = ((image.float() - 120.0) / 58.0).contiguous(memory_format=torch.channels_last)
    return model.decode_head(model.backbone(normal))

  def loss_of(image, label):
    with torch.autocast(device.type, torch.bfloat16):
      features = model.backbone(
        ((image.float() - 120.0) / 58.0).contiguous(memory_format=torch.channels_last)
      )
      maps = [(model.decode_head(features), 1.0)]
      if model.with_auxiliary_head:
        maps.append((model.auxiliary_head(features), 0.4))
    resize = dict(size=shape[1:], mode="bilinear", align_corners=False)
    return sum(w * F.cross_entropy(F.interpolate(m.float(), **resize), label) for m, w in maps)

  def label_map(image):
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
      logits = network(image)
      return F.interpolate(logits.float(), shape[1:], mode="bilinear").argmax(1).to(torch.uint8)

  work = loss_of if training else label_map
  if case["who"] == "torch.compile":
    work = torch.compile(work)

  def run():
    if not training:
      return work(image)
    optimizer.zero_grad(set_to_none=True)
    loss = work(image, label)
    loss.backward()
    optimizer.step()
    return loss

  def wait():
    if device.type == "cuda":
      torch.cuda.synchronize()

  began = time.perf_counter()
  run()
  wait()
  compile_seconds = time.perf_counter() - began
  if device.type == "cuda":
    torch.cuda.empty_cache()  # for those that compile meanwhile
  print("READY", flush=True)
  sys.stdin.readline()
  for _ in range(2):
    run()
  wait()
  began = time.perf_counter()
  run()
  wait()
  count = max(min(case["runs"], math.ceil(0.5 / (time.perf_counter() - began))), 2)
  rounds = []
  for _ in range(3):
    began = time.perf_counter()
    for _ in range(count):
      run()
    wait()
    rounds.append((time.perf_counter() - began) / count)
  median = sorted(rounds)[1]
  result = {
    "ms": 1e3 * median,
    "spread": max(rounds) / min(rounds),
    "images_per_second": case["batch"] / median,
    "compile_seconds": compile_seconds,  # and the first run
    "torch": torch.__version__,
  }
  if device.type == "cuda":
    result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
  print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
  main()
