"""One step is one step, on one device or two: run in a process of its own, with two fake devices."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent

# No more fake devices than cores, and every step is waited for: they deadlock otherwise.
_SCRIPT = """
import sys
import jax
import numpy as np
from jaxseg import sharding
from jaxseg.checkpoint import Checkpoints
from jaxseg.evaluation import evaluate
from jaxseg.train import create_state, jit_step, make_loss, make_optimizer, make_step
from jaxseg.types import Preprocess
from tests.train import tiny

assert jax.device_count() == 2
one = sharding.make_mesh(devices=jax.devices()[:1])
meshes = {"one": one, "data": sharding.make_mesh(), "fsdp": sharding.make_mesh(fsdp=2)}
model = tiny.Tiny(width=64, rate=0.2)
variables = tiny.variables(model)
tx = make_optimizer({"name": "adam", "learning_rate": 1e-2, "weight_decay": 1e-3}, variables["params"])


def fresh(mesh):
  # The tiny model's kernels are below the size from which leaves are split by default.
  return sharding.place(start, mesh, min_elements=64)


def batch(i):
  # Half of the images have far fewer labels: a mean of per-device means would differ.
  batch = tiny.batch(i)
  batch["label"][:2, 2:] = 255
  return batch


def run(name, state, numbers):
  losses = []
  for i in numbers:
    state, scalars = steps[name](state, sharding.to_global(batch(i), meshes[name]), jax.random.key(0))
    losses.append(float(scalars["loss"]))
  return state, losses


start = create_state(model, variables, tx)
pure = make_step(make_loss({}), tx)
steps = {name: jit_step(pure, mesh, start, min_elements=64) for name, mesh in meshes.items()}
results, kernels = {}, {}
for name, mesh in meshes.items():
  state = fresh(mesh)
  kernel = state.params["conv"]["kernel"].sharding
  assert kernel.is_fully_replicated == (name != "fsdp"), (name, kernel)
  assert state.opt_state[1].mu["conv"]["kernel"].sharding == kernel
  state, results[name] = run(name, state, range(5))
  assert state.params["conv"]["kernel"].sharding == kernel
  kernels[name] = np.asarray(state.params["conv"]["kernel"])
  print(name, results[name])
for name in ("data", "fsdp"):
  np.testing.assert_allclose(results[name], results["one"], rtol=1e-5)
  np.testing.assert_allclose(kernels[name], kernels["one"], atol=1e-4)

# A checkpoint of two devices comes back bit-equal on one and on two, split as asked, and goes on the same.
saved, _ = run("fsdp", fresh(meshes["fsdp"]), range(3))
with Checkpoints(sys.argv[1]) as checkpoints:
  checkpoints.save(3, saved)
  checkpoints.wait()
  for name, mesh in meshes.items():
    like = fresh(mesh)
    restored = checkpoints.restore(like)
    for mine, theirs, want in zip(*map(jax.tree.leaves, (restored, saved, like)), strict=True):
      assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
      assert mine.sharding == want.sharding
    np.testing.assert_allclose(run(name, restored, range(3, 5))[1], results["one"][3:], rtol=1e-5)

# Counts are equal exactly.
batches = [{**batch(i), "image": (255 * (batch(i)["image"] > 0)).astype(np.uint8)} for i in range(2)]
matrices = [
  evaluate(model, variables, batches, num_classes=3, preprocess=Preprocess(), mesh=mesh).matrix
  for mesh in (None, meshes["data"])
]
assert matrices[0].sum() > 0
for matrix in matrices[1:]:
  np.testing.assert_array_equal(matrix, matrices[0])
print("all equal")
"""


def test_steps_checkpoints_and_counts_do_not_depend_on_the_devices(tmp_path):
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
  }
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT, str(tmp_path)],
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.splitlines()[-1] == "all equal"
