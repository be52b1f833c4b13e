"""Ten steps are the same ten steps on any mesh, and in one process or two: `benchmarks/meshes.py`, small."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

# Biases that a BatchNorm takes away again: their gradient is rounding noise, of which Adam makes whole steps.
# SegFormer's projections reach it through a convolution without bias.
NOISE = {
  "segnext": r"encoder/stage1/stem_conv/bias|encoder/stage\d/embed_conv/bias",
  "segformer": r"decoder/project_stage\d/bias|encoder/stage4/norm/bias"
  r"|encoder/stage\d/block\d+/attention/key/bias",
  "cgnet": "",
  "deeplab": "",  # SGD: without exception
}


@pytest.mark.parametrize(
  ("family", "mesh", "processes"),
  [
    ("segnext", "2x2x2", 1),
    ("segformer", "2x2x2", 1),
    ("cgnet", "2x1x4", 2),  # four devices share an image
    ("deeplab", "2x1x4", 1),
  ],
)
def test_ten_steps_at_the_recipes_rate(family, mesh, processes):
  environment = {
    **os.environ,
    # Unoptimised code: compiling is what takes the time.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
  }
  words = [f"--families={family}", f"--meshes={mesh}", f"--processes={processes}", "--json"]
  done = subprocess.run(
    [sys.executable, ROOT / "benchmarks" / "meshes.py", *words],
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  (result,) = json.loads(done.stdout.splitlines()[-1]).values()
  assert result["same_batches"]
  assert len(result["losses"]) == 10 and max(result["losses"]) <= 1e-5, result["losses"]
  far = {
    name: difference
    for name, difference in result["tensors"].items()
    if difference > 1e-3 and not re.fullmatch(NOISE[family], name)
  }
  assert not far
