"""Bytes, temporaries and estimated cycles of loss, attention, SegFormer's head and its label map on a TPU.

No TPU is needed: libtpu compiles for one v5e chip. Nothing is run.

  python benchmarks/tpu_loss.py loss attention head inference [--dump=FOLDER]

Bytes are those of `jaxseg.plan`: operands and results of every instruction, times the trips of the loops
around it, with the padding of tiles. Cycles are libtpu's own estimates, summed in the same way: good for
ranking forms, no prediction of a time.
"""

import argparse
import pathlib
import re
import time

import jax
import jax.numpy as jnp

import jaxseg
from jaxseg import plan
from jaxseg.decoders.segformer import AllMLP
from jaxseg.evaluation.inference import label_map
from jaxseg.layers.attention import attention
from jaxseg.layers.concat_conv import ConcatConv
from jaxseg.train import make_loss

BATCH, CLASSES = 16, 150


def shaped(*shape, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype)


def loss():
  """128²×150 → 512² with a gradient; float32 logits that were bfloat16, as a model gives them."""
  loss_fn = make_loss({"name": "cross_entropy"})

  def step(logits, labels):
    return jax.value_and_grad(lambda x: loss_fn({"logits": x.astype(jnp.float32)}, labels)[0])(logits)

  return step, (shaped(BATCH, 128, 128, CLASSES), shaped(BATCH, 512, 512, dtype=jnp.int32)), BATCH


def attention_of_stage1():
  """16,384 queries × 256 keys, one head of 32, values and gradients."""

  def step(query, key, value, cotangent):
    out, pull = jax.vjp(attention, query, key, value)
    return out, pull(cotangent)

  query, key = shaped(BATCH, 16384, 1, 32), shaped(BATCH, 256, 1, 32)
  return step, (query, key, key, query), BATCH


def head():
  """SegFormer-B0's decoder on the features of 512² images, training, to the loss's door."""
  decoder = AllMLP(num_classes=CLASSES, dtype=jnp.bfloat16)
  widths = {"stage1": 32, "stage2": 64, "stage3": 160, "stage4": 256}
  features = {name: shaped(BATCH, 128 >> i, 128 >> i, c) for i, (name, c) in enumerate(widths.items())}
  variables = jax.eval_shape(lambda f: decoder.init(jax.random.key(0), f, train=False), features)

  def step(params, stats, features, cotangent):
    def apply(params, features):
      variables = {"params": params, "batch_stats": stats}
      rngs = {"dropout": jax.random.key(0)}
      return decoder.apply(variables, features, train=True, mutable=["batch_stats"], rngs=rngs)

    logits, pull, stats = jax.vjp(apply, params, features, has_aux=True)
    return logits, stats, pull(cotangent)

  logits = shaped(BATCH, 128, 128, CLASSES)
  return step, (variables["params"], variables["batch_stats"], features, logits), BATCH


def inference(batch=1, name="segformer_b0"):
  """uint8 in, label map out."""
  encoder, decoder = dict(dtype=jnp.bfloat16), dict(dtype=jnp.bfloat16)
  model = jaxseg.create_model(name, num_classes=CLASSES, encoder=encoder, decoder=decoder)
  image = shaped(batch, 512, 512, 3, dtype=jnp.uint8)
  floats = shaped(batch, 512, 512, 3, dtype=jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), floats)

  def predict(variables, image):
    image = (image.astype(jnp.float32) - 127.5) / 58.0
    return label_map(model.apply(variables, image, train=False), image.shape[1:3])

  return predict, (variables, image), batch


def fuse():
  """The head's 1×1 over four levels, resized and summed: values and gradients."""
  widths = (256, 160, 64, 32)
  levels = [shaped(BATCH, 16 << i, 16 << i, c) for i, c in enumerate(widths)]
  module = ConcatConv(256, dtype=jnp.bfloat16)
  projections = [(shaped(c, 256), shaped(256)) for c in widths]
  variables = jax.eval_shape(
    lambda x, p: module.init(jax.random.key(0), x, (128, 128), projections=p), levels, projections
  )

  def step(variables, levels, projections, cotangent):
    apply = lambda v, x, p: module.apply(v, x, (128, 128), projections=p)  # noqa: E731
    out, pull = jax.vjp(apply, variables, levels, projections)
    return out, pull(cotangent)

  return step, (variables, levels, projections, shaped(BATCH, 128, 128, 256)), BATCH


CASES = {
  "loss": loss,
  "fuse": fuse,
  "attention": attention_of_stage1,
  "head": head,
  "inference": inference,
  "inference16": lambda: inference(batch=BATCH),
}


def cycles(program, name=None) -> float:
  """The compiler's estimates, summed; a loop's as often as it runs."""
  total = 0.0
  for instruction in program.computations[name or program.entry].instructions.values():
    if found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes):
      total += float(found.group(1))
    elif instruction.opcode == "while":
      total += cycles(program, instruction.called("body")[0]) * trips(program, instruction)
    elif instruction.opcode in ("call", "conditional"):
      called = instruction.called("to_apply") or instruction.called("branch_computations")
      total += max((cycles(program, inner) for inner in called), default=0.0)
  return total


def trips(program, loop) -> int:
  """How often a loop runs, as its text says."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
    return int(known.group(1))
  (condition,) = loop.called("condition")
  inside = program.computations[condition].instructions.values()
  (bound,) = (int(i.literal) for i in inside if i.opcode == "constant" and i.literal.strip().isdigit())
  return bound


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("cases", nargs="*", default=list(CASES), choices=[*CASES, []])
  parser.add_argument("--dump", default="", help="folder for the texts of the optimised programs")
  arguments = parser.parse_args()
  topology = plan.open_topology("v5e:1x1")
  place = jax.sharding.SingleDeviceSharding(topology.devices[0])
  for name in arguments.cases:
    function, shapes, images = CASES[name]()
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*shapes).compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    if arguments.dump:
      (pathlib.Path(arguments.dump) / f"{name}.txt").write_text(text)
    program = plan.parse(text)
    cost, memory = plan.count(program), compiled.memory_analysis()
    print(
      f"{name}: {cost.padded_bytes / 1e9:.3f} GB with padding ({cost.padded_bytes / images / 1e9:.4f} an"
      " image),"
      f" {cost.nbytes / 1e9:.3f} GB without, temporaries {memory.temp_size_in_bytes / 2**30:.2f} GiB,"
      f" {cycles(program) / 1e6:.2f} M estimated cycles, {cost.passes / 1e12:.2f} TFLOP by passes,"
      f" compiled in {seconds:.0f} s",
      flush=True,
    )


if __name__ == "__main__":
  main()
