r"""Ten training steps on one device and on meshes of eight: how far losses and parameters part.

  python benchmarks/meshes.py --processes=1,2        # the table of docs/scaling.md
  python benchmarks/meshes.py --families=cgnet --meshes=8x1x1,2x2x2 --seeds=0,1,2,3 --json

One model of each family, few blocks but every kind of them, at its recipe's peak learning rate, in
float32, on eight fake devices of the CPU; `--processes=2` makes them two processes of four, which talk
over Gloo. Every mesh sees the same global batches: pictures of coloured patches.
"""

import argparse
import hashlib
import itertools
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
ONE = "1x1x1"


def main() -> None:
  """Prints a line for each family and mesh, or with --json all of it as one object."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--families", default=",".join(FAMILIES))
  parser.add_argument("--meshes", default=",".join(MESHES), help="data x fsdp x spatial, each of 8 devices")
  parser.add_argument("--processes", default="1", help="1, or 1,2; one device is compared with")
  parser.add_argument("--seeds", default="2", help="of the first parameters and of the pictures")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--scale", type=int, default=1, help="factor on the pictures' sides")
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.folder:
    worker(flags)
    return
  results = {}
  counts = [int(count) for count in flags.processes.split(",")]
  for family in flags.families.split(","):
    with tempfile.TemporaryDirectory() as folder:
      launch(flags, family, f"{ONE},{flags.meshes}" if 1 in counts else ONE, 1, folder)
      for processes in counts:
        if processes > 1:
          launch(flags, family, flags.meshes, processes, folder)
        for seed, mesh in itertools.product(flags.seeds.split(","), flags.meshes.split(",")):
          one, many = (dict(np.load(f"{folder}/{x}-{seed}.npz")) for x in (f"{ONE}-1", f"{mesh}-{processes}"))
          name = f"{family} {mesh}" + f" in {processes} processes" * (processes > 1) + f", seed {seed}"
          results[name] = compare(one, many)
          if not flags.json:
            print(line(name, results[name]), flush=True)
  if flags.json:
    print(json.dumps(results))


def launch(flags: argparse.Namespace, family: str, meshes: str, processes: int, folder: str) -> None:
  """Runs meshes in processes of their own, since the number of fake devices is fixed when JAX starts."""
  words = [f"--{name}={getattr(flags, name)}" for name in ("seeds", "batch", "scale")]
  words += [f"--families={family}", f"--meshes={meshes}", f"--folder={folder}"]
  env = {
    **os.environ,
    "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes} "
    + os.environ.get("XLA_FLAGS", ""),
  }
  if processes > 1:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
  running = [
    subprocess.Popen(
      [sys.executable, __file__, *words],
      env={**env, "JAX_PROCESS_ID": str(i)},
    )
    for i in range(processes)
  ]
  codes = [process.wait() for process in running]
  if any(codes):
    raise SystemExit(f"{family} on {meshes} in {processes} processes ended with {codes}")


def worker(flags: argparse.Namespace) -> None:
  """Ten steps of one family, for each mesh and seed; the first process writes what `compare` reads."""
  import jax
  import jax.numpy as jnp

  import jaxseg
  from jaxseg import sharding
  from jaxseg.train import create_state, jit_step, make_loss, make_optimizer, make_step

  processes = int(os.environ.get("JAX_NUM_PROCESSES", "1"))
  if processes > 1:
    jax.distributed.initialize(num_processes=processes, process_id=int(os.environ["JAX_PROCESS_ID"]))
  folder = pathlib.Path(flags.folder)
  arch, size, encoder, decoder, optimizer = FAMILIES[flags.families]
  size = tuple(flags.scale * side for side in size)
  model = jaxseg.create_model(arch, num_classes=CLASSES, encoder=encoder, decoder=decoder)
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *size, 3)), train=False))
  seeds = [int(seed) for seed in flags.seeds.split(",")]
  starts = {seed: jax.tree.map(np.asarray, init(jax.random.key(seed))) for seed in seeds}
  tx = make_optimizer(optimizer, starts[seeds[0]]["params"])
  for shape in flags.meshes.split(","):
    data, fsdp, spatial = map(int, shape.split("x"))
    devices = jax.devices()[: data * fsdp * spatial]
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, spatial=spatial, devices=devices)
    first = create_state(model, starts[seeds[0]], tx)
    # The reduced models' tensors are below the size from which leaves are split by default.
    step = jit_step(
      make_step(make_loss({}), tx), mesh, sharding.place(first, mesh, min_elements=256), min_elements=256
    )
    for seed in seeds:
      state = sharding.place(first.replace(params=starts[seed]["params"]), mesh, min_elements=256)
      first_gradient = gradient(state, make_loss({}), mesh, seed, flags.batch, size)
      found = first_gradient | ten_steps(step, state, mesh, seed, flags.batch, size)
      if jax.process_index() == 0:
        before = {f"before/{path}": x for path, x in by_path(starts[seed]["params"]).items()}
        np.savez(folder / f"{shape}-{processes}-{seed}.npz", **found, **before)


def ten_steps(step, state, mesh, seed: int, batch_size: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
  """Losses, the first batches' hashes, and the parameters afterwards."""
  import jax
  from jax.experimental import multihost_utils

  from jaxseg import sharding

  key = jax.jit(lambda: jax.random.key(0), out_shardings=sharding.replicated(mesh))()
  rows = list(sharding.rows_to_read(batch_size, mesh))
  losses, hashes = [], []
  for i in range(STEPS):
    given = pictures(100 * seed + i, batch_size, size)
    batch = sharding.to_global({k: x[rows] for k, x in given.items()}, mesh)
    if i < 2:
      whole = {k: np.asarray(multihost_utils.process_allgather(x, tiled=True)) for k, x in batch.items()}
      hashes.append(hashlib.sha256(whole["image"].tobytes() + whole["label"].tobytes()).hexdigest())
    state, scalars = step(state, batch, key)
    jax.block_until_ready(state)  # eight fake devices on fewer cores can deadlock otherwise
    losses.append(float(scalars["loss"]))
  every = sharding.put(state.params, jax.tree.map(lambda _: sharding.replicated(mesh), state.params))
  after = {f"after/{path}": x for path, x in by_path(every).items()}
  return {"losses": np.array(losses), "hashes": np.array(hashes), **after}


def gradient(state, loss_fn, mesh, seed: int, batch_size: int, size) -> dict[str, np.ndarray]:
  """The gradient of the first batch's loss at the first parameters, with one draw of dropout."""
  import jax

  from jaxseg import sharding

  rows = list(sharding.rows_to_read(batch_size, mesh))
  batch = sharding.to_global({k: x[rows] for k, x in pictures(100 * seed, batch_size, size).items()}, mesh)

  def loss(params, rest, batch):
    rngs = {"dropout": jax.random.key(seed)}
    variables, mutable = {"params": params, **rest}, list(rest)
    outputs, _ = state.apply_fn(variables, batch["image"], train=True, mutable=mutable, rngs=rngs)
    return loss_fn(outputs, batch["label"])[0]

  with jax.set_mesh(mesh):
    replicated = jax.tree.map(lambda _: sharding.replicated(mesh), state.params)
    found = jax.jit(jax.grad(loss), out_shardings=replicated)(state.params, state.model_state, batch)
  return {f"gradient/{path}": x for path, x in by_path(jax.block_until_ready(found)).items()}


def by_path(tree) -> dict[str, np.ndarray]:
  """Names as in "encoder/stem/conv/kernel" → arrays."""
  import jax

  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


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
  """Relative differences of the losses, of the first gradient, and of each tensor's change over the steps."""
  parts = {}
  for name, before in one.items():
    if name.startswith("before/"):
      name = name.removeprefix("before/")
      moved = np.linalg.norm(one[f"after/{name}"] - before)
      parts[name] = float(np.linalg.norm(many[f"after/{name}"] - one[f"after/{name}"]) / max(moved, 1e-30))
  names = [name for name in one if name.startswith("gradient/")]
  wrong, all_of_it = (
    sum(float(np.square(x, dtype=np.float64).sum()) for x in xs) ** 0.5
    for xs in ([many[n] - one[n] for n in names], [one[n] for n in names])
  )
  return {
    "gradient": wrong / all_of_it,
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
