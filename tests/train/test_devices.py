"""One step is one step, on one device or two: run in a process of its own, with two fake devices."""

import os
import pathlib
import socket
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
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
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


# One image on the devices of two hosts: both read it, and it is counted once.
_HOSTS = """
import sys
import jax
import numpy as np

jax.distributed.initialize("127.0.0.1:" + sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))

from jaxseg import sharding
from jaxseg.evaluation import InferenceRule, evaluate
from jaxseg.types import Preprocess
from tests.train import tiny

model = tiny.Tiny()
variables = jax.device_get(tiny.variables(model))
batches = [{**tiny.batch(i, size=2), "id": np.array(["a", "b"])} for i in range(2)]
batches = [{**batch, "image": (255 * (batch["image"] > 0)).astype(np.uint8)} for batch in batches]
settings = dict(num_classes=3, preprocess=Preprocess())
alone = evaluate(model, variables, batches, **settings).matrix
assert alone.sum() > 0
for axes, rule in (
  ({"spatial": 2}, InferenceRule(mode="slide", crop_size=(16, 16), stride=(16, 16))),
  ({"spatial": 2}, InferenceRule()),
  ({"fsdp": 2}, InferenceRule()),
):
  mesh = sharding.make_mesh(**{"data": 1, **axes})
  rows = list(sharding.rows_to_read(2, mesh))
  assert rows == ([0, 1] if "spatial" in axes else [jax.process_index()])
  mine = [{name: x[rows] for name, x in batch.items()} for batch in batches]
  scores = evaluate(model, variables, mine, mesh=mesh, rule=rule, **settings)
  np.testing.assert_array_equal(scores.matrix, alone)
placed = sharding.place(variables, mesh, min_elements=8)
split = [x for x in jax.tree.leaves(placed) if not x.is_fully_replicated]
assert split and all(x.addressable_shards[0].data.size * 2 == x.size for x in split)
print("all equal")
"""


def test_evaluation_where_an_image_spans_two_processes():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = str(free.getsockname()[1])
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  running = [
    subprocess.Popen(
      [sys.executable, "-c", _HOSTS, port, str(i)],
      env=environment,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=600) for process in running]
  assert [process.returncode for process in running] == [0, 0], said
  assert all(out.splitlines()[-1] == "all equal" for out, _ in said)
