r"""Ten training steps on one device and on meshes of eight: how far losses and parameters part.

  python benchmarks/meshes.py                      # the table of docs/scaling.md
  python benchmarks/meshes.py --families=cgnet --meshes=8x1x1,2x2x2 --processes=1,2 --json

One model of each family, few blocks but every kind of them, at its recipe's peak learning rate, in
float32, on eight fake devices of the CPU; `--processes=2` makes them two processes of four, which talk
over Gloo. Every mesh sees the same global batches: pictures of coloured patches.
"""

import argparse
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np

STEPS, DEVICES, CLASSES = 10, 8, 5
# model, rows x columns, encoder, decoder, optimizer: rates are those at which the published recipes start.
FAMILIES = {
  "segnext": (
    "segnext_tiny",
    (192, 64),
    dict(depths=(1, 1, 1, 1), dims=(32, 32, 64, 64)),
    dict(channels=64, ham_channels=64),
    dict(name="adamw", learning_rate=6e-5, weight_decay=0.01),
  ),
  "segformer": (
    "segformer_b0",
    (128, 64),
    dict(depths=(1, 1, 1, 1)),
    dict(width=64),
    dict(name="adamw", learning_rate=6e-5, weight_decay=0.01),
  ),
  "cgnet": (
    "cgnet_m3n21",
    (64, 32),
    dict(widths=(8, 16, 32), num_blocks=(2, 3), reductions=(4, 8)),
    {},
    dict(name="adam", learning_rate=1e-3, weight_decay=5e-4),
  ),
  "deeplab": (
    "deeplabv3plus_resnet50",
    (64, 32),
    dict(stage_sizes=(1, 1, 1, 1), multi_grid=(), width=8),
    dict(rates=(2, 3), channels=32),
    dict(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
  ),
}
MESHES = ("8x1x1", "2x4x1", "2x1x4", "2x2x2")


def main() -> None:
  """Prints a line for each family and mesh, or with --json all of it as one object."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--families", default=",".join(FAMILIES))
  parser.add_argument("--meshes", default=",".join(MESHES), help="data x fsdp x spatial, each of 8 devices")
  parser.add_argument("--processes", default="1", help="1, 2 or 1,2")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--scale", type=int, default=1, help="factor on the pictures' sides")
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.folder:
    worker(flags)
    return
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    for family in flags.families.split(","):
      one = launch(flags, family, "1x1x1", 1, folder)
      for processes in map(int, flags.processes.split(",")):
        for mesh in flags.meshes.split(","):
          many = launch(flags, family, mesh, processes, folder)
          name = f"{family} {mesh}" + f" in {processes} processes" * (processes > 1)
          results[name] = compare(one, many)
          if not flags.json:
            print(line(name, results[name]), flush=True)
  if flags.json:
    print(json.dumps(results))


def launch(flags: argparse.Namespace, family: str, mesh: str, processes: int, folder: str) -> dict:
  """Runs one mesh in processes of its own, since the number of fake devices is fixed when JAX starts."""
  devices = 1 if mesh == "1x1x1" else DEVICES
  out = pathlib.Path(folder) / f"{family}-{mesh}-{processes}.npz"
  words = [f"--families={family}", f"--meshes={mesh}", f"--batch={flags.batch}", f"--scale={flags.scale}"]
  env = {
    **os.environ,
    "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes} "
    + os.environ.get("XLA_FLAGS", ""),
  }
  if processes > 1:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
  running = [
    subprocess.Popen(
      [sys.executable, __file__, *words, f"--folder={out}"], env={**env, "JAX_PROCESS_ID": str(i)}
    )
    for i in range(processes)
  ]
  codes = [process.wait() for process in running]
  if any(codes):
    raise SystemExit(f"{family} on {mesh} in {processes} processes ended with {codes}")
  return dict(np.load(out))


def worker(flags: argparse.Namespace) -> None:
  """Ten steps of one family on one mesh; the first process writes losses, batches' hashes and parameters."""
  import jax
  import jax.numpy as jnp
  from jax.experimental import multihost_utils

  import jaxseg
  from jaxseg import sharding
  from jaxseg.train import create_state, jit_step, make_loss, make_optimizer, make_step

  if os.environ.get("JAX_NUM_PROCESSES"):
    jax.distributed.initialize(
      num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
    )
  arch, size, encoder, decoder, optimizer = FAMILIES[flags.families]
  size = tuple(flags.scale * side for side in size)
  data, fsdp, spatial = map(int, flags.meshes.split("x"))
  mesh = sharding.make_mesh(data=data, fsdp=fsdp, spatial=spatial)
  model = jaxseg.create_model(arch, num_classes=CLASSES, encoder=encoder, decoder=decoder)
  variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))()
  tx = make_optimizer(optimizer, variables["params"])
  # The reduced models' tensors are below the size from which leaves are split by default.
  state = sharding.place(create_state(model, variables, tx), mesh, min_elements=256)
  step = jit_step(make_step(make_loss({}), tx), mesh, state, min_elements=256)
  key = jax.jit(lambda: jax.random.key(0), out_shardings=sharding.replicated(mesh))()
  rows = list(sharding.rows_to_read(flags.batch, mesh))
  losses, hashes = [], []
  for i in range(STEPS):
    batch = sharding.to_global({k: x[rows] for k, x in pictures(i, flags.batch, size).items()}, mesh)
    if i < 2:
      whole = {k: np.asarray(multihost_utils.process_allgather(x, tiled=True)) for k, x in batch.items()}
      hashes.append(hashlib.sha256(whole["image"].tobytes() + whole["label"].tobytes()).hexdigest())
    state, scalars = step(state, batch, key)
    jax.block_until_ready(state)  # eight fake devices on fewer cores can deadlock otherwise
    losses.append(float(scalars["loss"]))
  every = sharding.put(state.params, jax.tree.map(lambda _: sharding.replicated(mesh), state.params))
  if jax.process_index() == 0:
    names = lambda tree: {  # noqa: E731
      jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
      for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    start = {f"before/{name}": x for name, x in names(variables["params"]).items()}
    after = {f"after/{name}": x for name, x in names(every).items()}
    np.savez(flags.folder, losses=np.array(losses), hashes=np.array(hashes), **start, **after)


def pictures(i: int, count: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
  """Batch `i`: patches of eight pixels, each in a shade of its class's colour, and some pixels unlabelled."""
  rng = np.random.default_rng(i)
  label = rng.integers(0, CLASSES, (count, size[0] // 8, size[1] // 8))
  colours = np.random.default_rng(99).standard_normal((CLASSES, 3))
  image = colours[label] + 0.3 * rng.standard_normal((*label.shape, 3))
  label, image = (x.repeat(8, 1).repeat(8, 2) for x in (label, image))
  label[rng.random(label.shape) < 0.02] = 255
  return {"image": image.astype(np.float32), "label": label.astype(np.int32)}


def compare(one: dict, many: dict) -> dict:
  """Relative differences of the losses, and of each tensor's change over the steps."""
  parts = {}
  for name, before in one.items():
    if name.startswith("before/"):
      name = name.removeprefix("before/")
      moved = np.linalg.norm(one[f"after/{name}"] - before)
      parts[name] = float(np.linalg.norm(many[f"after/{name}"] - one[f"after/{name}"]) / max(moved, 1e-30))
  return {
    "losses": (np.abs(many["losses"] - one["losses"]) / one["losses"]).tolist(),
    "first": float(one["losses"][0]),
    "last": float(one["losses"][-1]),
    "same_batches": bool((one["hashes"] == many["hashes"]).all()),
    "tensors": dict(sorted(parts.items(), key=lambda item: -item[1])),
  }


def line(name: str, result: dict) -> str:
  """The worst of a comparison, as a row of a table."""
  worst, difference = next(iter(result["tensors"].items()))
  over = sum(value > 1e-3 for value in result["tensors"].values())
  return (
    f"| {name} | {result['first']:.3f} to {result['last']:.3f} | {max(result['losses']):.0e} |"
    f" {difference:.0e} ({worst}) | {over} of {len(result['tensors'])} |"
  )


if __name__ == "__main__":
  main()
