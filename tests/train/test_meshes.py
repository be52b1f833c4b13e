"""Ten steps are the same ten steps on any mesh, and in one process or two: `benchmarks/meshes.py`, small."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

SEEDS = "2,3"
# What float32 gives: at the same parameters the loss and the whole gradient, and the losses of ten steps.
FIRST_LOSS, GRADIENT, LOSSES = 1e-6, 1e-4, 1e-3


@pytest.mark.parametrize(
  ("family", "meshes", "processes"),
  [
    ("deeplab", "2x2x2", 1),
    # Four devices, all of one process, share an image.
    pytest.param("cgnet", "2x1x4", 2, marks=pytest.mark.full),
    pytest.param("segnext", "2x2x2", 1, marks=pytest.mark.full),
    pytest.param("segformer", "2x2x2", 1, marks=pytest.mark.full),
    pytest.param("cgnet", "8x1x1,2x4x1,2x1x4,2x2x2", 1, marks=pytest.mark.full),
    pytest.param("deeplab", "8x1x1,2x4x1,2x1x4", 1, marks=pytest.mark.full),
    pytest.param("deeplab", "2x4x1", 2, marks=pytest.mark.full),
  ],
)
def test_ten_steps_at_the_recipes_rate(family, meshes, processes):
  words = [f"--families={family}", f"--meshes={meshes}", f"--processes={processes}", f"--seeds={SEEDS}"]
  done = subprocess.run(
    [sys.executable, ROOT / "benchmarks" / "meshes.py", *words, "--json"],
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  results = json.loads(done.stdout.splitlines()[-1])
  for mesh in meshes.split(","):
    starts = [result for name, result in results.items() if mesh in name]
    assert len(starts) == len(SEEDS.split(","))
    for result in starts:
      assert result["same_batches"] and len(result["losses"]) == 10
      assert result["losses"][0] <= FIRST_LOSS, (mesh, result["losses"])
      assert result["gradient"] <= GRADIENT, (mesh, result["gradient"])
      assert max(result["losses"]) <= LOSSES, (mesh, result["losses"])
