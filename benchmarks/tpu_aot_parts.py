"""Parts of the training steps on a TPU that need not be there: bytes, temporaries, estimated cycles.

Values and gradients of the loss, the attention, SegFormer's decoder, a stage of an encoder, an MSCA unit, a
feed-forward, each compiled alone by libtpu for one v5e chip; nothing is run. A part compiles in seconds, a
whole step in minutes.

  python benchmarks/tpu_aot_parts.py loss head mit1 msca_64x128 [--top=N] [--dump=FOLDER]

Bytes are those of `jaxseg.plan`: operands and results of every instruction, times the trips of the loops
around it, with the padding of tiles. Cycles are libtpu's own estimates, summed in the same way: good for
ranking forms, no prediction of a time. Alone, a part may keep in vector memory what it cannot in its step.
"""

import argparse
import functools
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg import plan

BATCH, CLASSES, SIZE = 16, 150, 512
WIDTHS = (32, 64, 160, 256)  # of MiT-B0's and MSCAN-T's stages


def shaped(*shape, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype)


def stage_input(number):
  """The map that a stage reads: the image, or the stage before it."""
  if number == 1:
    return shaped(BATCH, SIZE, SIZE, 3)
  side = SIZE >> number
  return shaped(BATCH, side, side, WIDTHS[number - 2])


def training(module, x, *, of_input=True):
  """A module's value and gradients, of its parameters and perhaps of its input."""
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
  params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

  def apply(params, x, rest):
    rngs = {"dropout": jax.random.key(0)}
    return module.apply({"params": params, **rest}, x, train=True, mutable=list(rest), rngs=rngs)

  out, _ = jax.eval_shape(apply, params, x, rest)

  def step(params, x, rest, cotangent):
    run = (lambda p, x: apply(p, x, rest)) if of_input else (lambda p: apply(p, x, rest))
    y, pull, changed = jax.vjp(run, *((params, x) if of_input else (params,)), has_aux=True)
    return y, changed, pull(cotangent)

  return step, (params, x, rest, out)


def loss():
  """128²×150 → 512² with a gradient; float32 logits that were bfloat16, as a model gives them."""
  from jaxseg.train import make_loss

  loss_fn = make_loss({"name": "cross_entropy"})

  def step(logits, labels):
    return jax.value_and_grad(lambda x: loss_fn({"logits": x.astype(jnp.float32)}, labels)[0])(logits)

  return step, (shaped(BATCH, SIZE // 4, SIZE // 4, CLASSES), shaped(BATCH, SIZE, SIZE, dtype=jnp.int32))


def attention():
  """16,384 queries × 256 keys, one head of 32."""
  from jaxseg.layers import attention as layers

  def step(query, key, value, cotangent):
    out, pull = jax.vjp(layers.attention, query, key, value)
    return out, pull(cotangent)

  query, key = shaped(BATCH, 16384, 1, 32), shaped(BATCH, 256, 1, 32)
  return step, (query, key, key, query)


def head():
  """SegFormer-B0's decoder on the features of 512² images, to the loss's door."""
  from jaxseg.decoders.segformer import AllMLP

  sides = (SIZE >> (i + 2) for i in range(4))
  features = {
    f"stage{i}": shaped(BATCH, n, n, c) for i, (n, c) in enumerate(zip(sides, WIDTHS, strict=True), 1)
  }
  return training(AllMLP(num_classes=CLASSES, dtype=jnp.bfloat16), features)


def ham():
  """SegNeXt-T's decoder."""
  from jaxseg.decoders.light_ham import LightHam

  features = {
    f"stage{i}": shaped(BATCH, SIZE >> (i + 1), SIZE >> (i + 1), WIDTHS[i - 1]) for i in range(2, 5)
  }
  return training(LightHam(num_classes=CLASSES, dtype=jnp.bfloat16), features)


class FewImages(nn.Module):
  """A stage that takes so many images at a time."""

  make: functools.partial
  images: int

  @nn.compact
  def __call__(self, x, *, train):
    from jaxseg.layers.stage import by_images

    return by_images(self.make(name="stage"), x, train=train, images=self.images)


def mit(number, *, images=0):
  """Two blocks of a MiT-B0's stage with its embedding."""
  from jaxseg.encoders import mit as encoder

  i, epsilons = number - 1, encoder.EPSILONS["nvlabs"]
  reduction = (8, 4, 2, 1)[i]
  make = functools.partial(
    encoder.Stage,
    dim=WIDTHS[i],
    block=functools.partial(encoder.Block, (1, 2, 5, 8)[i], reduction, 4, epsilons, dtype=jnp.bfloat16),
    num_blocks=2,
    drop_path_rates=(0.0, 0.1),
    multiple=reduction,
    patch_size=3 if i else 7,
    strides=2 if i else 4,
    epsilons=epsilons,
    dtype=jnp.bfloat16,
  )
  return training(FewImages(make, images), stage_input(number), of_input=number > 1)


def mscan(number):
  """One block of MSCAN-T's stage with its embedding."""
  from jaxseg.encoders import mscan as encoder

  stage = encoder.Stage(
    dim=WIDTHS[number - 1],
    block=functools.partial(encoder.Block, (8, 8, 4, 4)[number - 1], dtype=jnp.bfloat16),
    num_blocks=1,
    drop_path_rates=(0.1,),
    strides=2 if number > 1 else 4,
    stem=number == 1,
    dtype=jnp.bfloat16,
  )
  return training(stage, stage_input(number), of_input=number > 1)


class Unit(nn.Module):
  """MSCA without its 1×1 and its gate."""

  @nn.compact
  def __call__(self, x, *, train):
    from jaxseg.encoders.mscan import MultiScaleConvAttention

    return MultiScaleConvAttention(mix=False, gate=False, dtype=jnp.bfloat16, name="msca")(x)


def msca(side, channels):
  """An MSCA unit."""
  return training(Unit(), shaped(BATCH, side, side, channels))


def mix_ffn(side, channels, hidden):
  """A feed-forward."""
  from jaxseg.layers.mix_ffn import mix_ffn as layer

  def step(x, fc1, dwconv, fc2, cotangent):
    y, pull = jax.vjp(layer, x, fc1, dwconv, fc2)
    return y, pull(cotangent)

  x = shaped(BATCH, side, side, channels)
  kernels = (channels, hidden), (3, 3, 1, hidden), (hidden, channels)
  weights = [(shaped(*kernel), shaped(kernel[-1], dtype=jnp.float32)) for kernel in kernels]
  return step, (x, *weights, x)


CASES = {
  "loss": loss,
  "attention": attention,
  "head": head,
  "ham": ham,
  **{f"mit{i}": functools.partial(mit, i) for i in range(1, 5)},
  **{f"mit{i}_one_image": functools.partial(mit, i, images=1) for i in range(1, 5)},
  **{f"mscan{i}": functools.partial(mscan, i) for i in range(1, 5)},
  **{
    f"mix_ffn_{n}x{c}x{k}": functools.partial(mix_ffn, n, c, k)
    for n, c, k in ((128, 32, 128), (128, 32, 256), (128, 64, 512), (64, 128, 1024), (16, 512, 2048))
  },
  **{
    f"msca_{n}x{c}": functools.partial(msca, n, c)
    for n, c in ((128, 32), (128, 64), (64, 64), (64, 128), (32, 160), (32, 320), (16, 512))
  },
}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("cases", nargs="+", choices=CASES, metavar="PART", help=", ".join(CASES))
  parser.add_argument("--top", type=int, default=0, help="list the instructions that move most")
  parser.add_argument("--dump", default="", metavar="FOLDER", help="for the texts of the optimised programs")
  arguments = parser.parse_args()
  topology = plan.open_topology("v5e:1x1")
  place = jax.sharding.SingleDeviceSharding(topology.devices[0])
  for name in arguments.cases:
    function, shapes = CASES[name]()
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)
    start, busy = time.perf_counter(), time.process_time()
    compiled = jax.jit(function).lower(*shapes).compile()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    text = compiled.as_text()
    if arguments.dump:
      (pathlib.Path(arguments.dump) / f"{name}.txt").write_text(text)
    program = plan.parse(text)
    cost, memory = plan.count(program), compiled.memory_analysis()
    print(
      f"{name}: {cost.padded_bytes / 1e9:.3f} GB with padding ({cost.padded_bytes / BATCH / 1e9:.4f} an"
      f" image), {cost.nbytes / 1e9:.3f} GB without, temporaries {memory.temp_size_in_bytes / 2**30:.2f} GiB,"
      f" {cost.cycles / 1e6:.2f} M estimated cycles, {cost.passes / 1e12:.2f} TFLOP by passes,"
      f" compiled in {seconds:.0f} s ({busy:.0f} s of processors)"
      + (f", kernels {cost.kernels}, whose cycles are not known" if cost.kernels else ""),
      flush=True,
    )
    for item in plan.largest(program, arguments.top):
      print(
        f"  {item.cost.padded_bytes / 1e9:.3f} GB, {item.cost.cycles / 1e6:.2f} M cycles: {item.name}"
        f" x {item.times:g} -> {item.result} {'/'.join(item.source.split('/')[-4:])}"
      )


if __name__ == "__main__":
  main()
