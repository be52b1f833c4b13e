r"""What one device of a mesh holds of a training step, by the compiled program's own figures.

  XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true" \
    python benchmarks/memory.py cgnet_m3n21 --size=512x512 --batch=4 --classes=19

Compiles the step in float32 with AdamW for fake devices of the CPU and runs nothing; `jaxseg plan` says the
same of a whole config, for TPUs as well.
"""

import argparse
import functools
import math


def main() -> None:
  """Prints a line for each mesh: state and temporaries, and both over their share of one device's."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("model")
  parser.add_argument("--size", default="512x512", help="rows x columns")
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--classes", type=int, default=19)
  parser.add_argument("--meshes", default="1x4x1,1x1x4", help="data x fsdp x spatial")
  flags = parser.parse_args()
  shapes = [tuple(map(int, mesh.split("x"))) for mesh in ("1x1x1", *flags.meshes.split(","))]

  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(map(math.prod, shapes)))
  one = None
  for data, fsdp, spatial in shapes:
    found = measure(flags, data, fsdp, spatial)
    one = one or found
    of_state = found[0] / one[0] * fsdp
    of_temporaries = found[1] / one[1] * data * fsdp * spatial
    print(
      f"{flags.model} {flags.size}, batch {flags.batch}, {data}x{fsdp}x{spatial}:"
      f" state {found[0] / 1e6:.1f} MB, {of_state:.2f} of a share;"
      f" temporaries {found[1] / 1e6:.0f} MB, {of_temporaries:.2f} of a share",
      flush=True,
    )


def measure(flags: argparse.Namespace, data: int, fsdp: int, spatial: int) -> tuple[float, float]:
  """(bytes of parameters, optimizer and statistics, bytes of temporaries) on one device."""
  import jax
  import jax.numpy as jnp

  import jaxseg
  from jaxseg import sharding
  from jaxseg.train import create_state, jit_step, make_loss, make_optimizer, make_step

  size = tuple(map(int, flags.size.split("x")))
  model = jaxseg.create_model(flags.model, num_classes=flags.classes)
  key = jax.eval_shape(lambda: jax.random.key(0))
  image = jax.ShapeDtypeStruct((flags.batch, *size, 3), jnp.float32)
  label = jax.ShapeDtypeStruct((flags.batch, *size), jnp.int32)
  variables = jax.eval_shape(functools.partial(model.init, train=False), key, image)
  tx = make_optimizer(dict(name="adamw", learning_rate=6e-5, weight_decay=0.01), variables["params"])
  state = jax.eval_shape(lambda variables: create_state(model, variables, tx), variables)
  devices = data * fsdp * spatial
  mesh = sharding.make_mesh(data=data, fsdp=fsdp, spatial=spatial, devices=jax.devices()[:devices])
  step = jit_step(make_step(make_loss({}), tx), mesh, state)
  stats = step.lower(state, {"image": image, "label": label}, key).compile().memory_analysis()
  batch = sum(math.prod(x.shape) * x.dtype.itemsize for x in (image, label))
  return stats.argument_size_in_bytes - batch / devices, stats.temp_size_in_bytes


if __name__ == "__main__":
  main()
