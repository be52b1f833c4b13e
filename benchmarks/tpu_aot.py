r"""A training step for a TPU that need not be there, compiled by libtpu: ours, or keras-hub's on JAX.

  python benchmarks/tpu_aot.py segformer_b0 --batch=16 --size=512x512
  PEER/bin/python benchmarks/tpu_aot.py --peer=keras_hub segformer_b0 --batch=16 --size=512x512

prints bytes an image (as a TPU moves them, tiles filled up, and without that), temporaries, the compiler's
estimated cycles and its own time, and with `--top=N` the instructions that move most. Both are counted by
`jaxseg.plan` on the optimised program. PEER is an environment with keras, keras-hub, jax and libtpu of the
same versions, and flax, optax, jaxtyping and safetensors for jaxseg. `--infer` compiles uint8 images → label
maps of ours instead.
"""

import argparse
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main() -> None:
  """One block of lines."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("model")
  parser.add_argument("--size", default="512x512", help="HxW, default %(default)s")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--classes", type=int, default=150)
  parser.add_argument("--topology", default="v5e:1x1")
  parser.add_argument("--peer", choices=("", "keras_hub"), default="")
  parser.add_argument("--encoder", default="{}", metavar="JSON", help='fields of ours: {"images_at_once": 1}')
  parser.add_argument("--infer", action="store_true")
  parser.add_argument("--top", type=int, default=0)
  parser.add_argument("--dump", default="", metavar="FILE", help="write the optimised program there")
  flags = parser.parse_args()
  rows, columns = map(int, flags.size.split("x"))

  from jax.sharding import SingleDeviceSharding

  from jaxseg import plan
  from jaxseg.plan.fit import attempt

  topology = plan.open_topology(flags.topology)
  device = SingleDeviceSharding(topology.devices[0])
  shape = (flags.batch, rows, columns)
  if flags.peer:
    lower = keras_step(flags.model, shape, flags.classes, device)
  elif flags.infer:
    lower = our_inference(flags.model, json.loads(flags.encoder), shape, flags.classes, device)
  else:
    lower = our_step(flags.model, json.loads(flags.encoder), shape, flags.classes, device)
  chip = dict(memory=topology.memory, vector_memory=topology.vector_memory)
  done = attempt(lambda _: lower(), flags.batch, **chip, dump=flags.dump, top=flags.top)
  name = f"{flags.peer or 'jaxseg'} {flags.model} {'inference' if flags.infer else 'training step'}"
  print(f"{name}, {flags.size}, batch {flags.batch}, {flags.topology}: compiled in {done.seconds:.0f} s")
  if done.cost is None:
    print(f"does not fit: {done.memory.total / 2**30:.2f} GiB", *done.reasons, sep="\n  ")
    return
  cost, images = done.cost, flags.batch
  print(
    f"  {cost.padded_bytes / images / 1e9:.3f} GB an image, {cost.nbytes / images / 1e9:.3f} without padding,"
    f" temporaries {done.memory.temporaries / 2**30:.2f} GiB, {cost.cycles / 1e6:.1f} M cycles,"
    f" {cost.flops / images / 1e9:.1f} GFLOP an image" + (f", kernels {cost.kernels}" if cost.kernels else "")
  )
  for item in done.largest:
    print(
      f"  {item.cost.padded_bytes / 1e9:.3f} GB, {item.cost.cycles / 1e6:.2f} M cycles: {item.name} x"
      f" {item.times:g} -> {item.result} {'/'.join(item.source.split('/')[-4:])}"
    )


def our_model(name, encoder, classes):
  """A published system in bfloat16, with some fields of its encoder changed."""
  import jaxseg

  fields = dict(encoder=dict(encoder, dtype="bfloat16"), decoder=dict(dtype="bfloat16"))
  return jaxseg.create_model(name, num_classes=classes, **fields)


def our_step(name, encoder, shape, classes, device):
  """train.py's step, AdamW, bfloat16."""
  import jax
  import jax.numpy as jnp

  from jaxseg.train import create_state, make_loss, make_optimizer, make_step

  model = our_model(name, encoder, classes)
  weights = {"logits": 1.0} | ({} if model.aux_decoder is None else {"aux_logits": 0.4})

  def state():
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    return create_state(
      model, variables, make_optimizer(dict(name="adamw", learning_rate=6e-5), variables["params"])
    )

  shapes = jax.eval_shape(state)
  tx = make_optimizer(dict(name="adamw", learning_rate=6e-5, weight_decay=0.01), shapes.params)
  step = make_step(make_loss(dict(weights=weights)), tx)
  batch = {
    "image": jax.ShapeDtypeStruct((*shape, 3), jnp.float32),
    "label": jax.ShapeDtypeStruct(shape, jnp.int32),
  }
  random = jax.eval_shape(lambda: jax.random.key(0))
  compiled = jax.jit(step, donate_argnums=0, in_shardings=device, out_shardings=device)
  return lambda: compiled.lower(shapes, batch, random)


def our_inference(name, encoder, shape, classes, device):
  """uint8 images → label maps, bfloat16, as evaluation and `predict` make them."""
  import jax
  import jax.numpy as jnp

  import jaxseg

  model = our_model(name, encoder, classes)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))

  def predict(variables, image):
    normal = (image.astype(jnp.float32) - 120.0) / 58.0
    logits = model.apply(variables, normal, train=False)["logits"]
    return jaxseg.resize_logits(logits, shape[1:]).argmax(-1).astype(jnp.uint8)

  image = jax.ShapeDtypeStruct((*shape, 3), jnp.uint8)
  compiled = jax.jit(predict, in_shardings=device, out_shardings=device)
  return lambda: compiled.lower(variables, image)


def keras_step(name, shape, classes, device):
  """keras-hub's SegFormer-B0 with Keras's AdamW, mixed_bfloat16, on the JAX backend."""
  os.environ["KERAS_BACKEND"] = "jax"
  import jax
  import jax.numpy as jnp
  import keras
  import keras_hub

  if name != "segformer_b0":
    sys.exit(f"the peer is keras-hub's segformer_b0, not {name}")
  keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
  encoder = keras_hub.models.MiTBackbone(
    layerwise_depths=[2, 2, 2, 2],
    num_layers=4,
    layerwise_num_heads=[1, 2, 5, 8],
    layerwise_sr_ratios=[8, 4, 2, 1],
    max_drop_path_rate=0.1,
    layerwise_patch_sizes=[7, 3, 3, 3],
    layerwise_strides=[4, 2, 2, 2],
    hidden_dims=[32, 64, 160, 256],
    image_shape=(*shape[1:], 3),
  )
  backbone = keras_hub.models.SegFormerBackbone(image_encoder=encoder, projection_filters=256)
  model = keras_hub.models.SegFormerImageSegmenter(backbone=backbone, num_classes=classes)
  optimizer = keras.optimizers.AdamW(6e-5, weight_decay=0.01)
  optimizer.build(model.trainable_variables)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)

  def loss_of(trainable, rest, image, label):
    logits, rest = model.stateless_call(trainable, rest, image, training=True)
    return loss(label, jnp.asarray(logits, jnp.float32)), rest

  def step(trainable, rest, slots, image, label):
    (value, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, rest, image, label)
    trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
    return trainable, rest, slots, value

  def shapes(variables):
    return [jax.ShapeDtypeStruct(v.shape, v.value.dtype) for v in variables]

  arguments = (
    shapes(model.trainable_variables),
    shapes(model.non_trainable_variables),
    shapes(optimizer.variables),
    jax.ShapeDtypeStruct((*shape, 3), jnp.float32),
    jax.ShapeDtypeStruct(shape, jnp.int32),
  )
  compiled = jax.jit(step, donate_argnums=(0, 1, 2), in_shardings=device, out_shardings=device)
  return lambda: compiled.lower(*arguments)


if __name__ == "__main__":
  main()
