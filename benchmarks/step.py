r"""Times one model on one backend: a forward pass, or a whole training step of ours.

  python benchmarks/step.py --train --size=256x256 --batch=8 cgnet_m3n21

A training step is forward, loss at full resolution, backward, BatchNorm statistics and an Adam
update, through the builders that train.py uses. `benchmarks/peers.py` runs this beside PyTorch.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg
from jaxseg import sharding
from jaxseg.train import create_state, make_loss, make_optimizer
from jaxseg.train.step import jit_step, make_step

_DEEPLAB = dict(
  encoder=dict(stem="v1c", output_stride=8, multi_grid=(), contract_dilation=True),
  decoder=dict(channels=512, rates=(12, 24, 36), fuse_kernel=3),
)
# Fields with which a model is mmsegmentation's own; the peers are that.
MMSEG = {
  "segformer_b0": dict(
    encoder=dict(epsilons="mmseg"), decoder=dict(projection="conv", concat_order="fine_to_coarse")
  ),
  "deeplabv3_resnet50": _DEEPLAB,
  "deeplabv3plus_resnet50": _DEEPLAB | dict(decoder=_DEEPLAB["decoder"] | dict(separable=True)),
}


def main() -> None:
  """One line a model: median and best of the counted runs, in milliseconds."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("models", nargs="+")
  parser.add_argument("--size", default="256x256", help="HxW, default %(default)s")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--classes", type=int, default=0, help="default: that of the peer's model")
  parser.add_argument("--runs", type=int, default=5)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--train", action="store_true")
  parser.add_argument("--mmseg", action="store_true", help="the variant of mmsegmentation")
  flags = parser.parse_args()
  height, width = map(int, flags.size.split("x"))
  for name in flags.models:
    run = prepare(name, (flags.batch, height, width), flags)
    run()
    seconds = []
    for _ in range(flags.runs):
      began = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - began)
    median, best = 1e3 * np.median(seconds), 1e3 * min(seconds)
    kind = "train" if flags.train else "infer"
    print(f"{name} {flags.size} batch {flags.batch} {kind} median {median:.0f} ms min {best:.0f}", flush=True)


def prepare(name: str, shape: tuple[int, int, int], flags: argparse.Namespace):
  """A function that runs once, and waits for it."""
  classes = flags.classes or (19 if name.startswith("cgnet") else 21 if "deeplab" in name else 150)
  variant = MMSEG.get(name, {}) if flags.mmseg else {}
  model = jaxseg.create_model(
    name,
    num_classes=classes,
    **{part: dict(dtype=flags.dtype) | variant.get(part, {}) for part in ("encoder", "decoder")},
  )
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.standard_normal((*shape, 3)), jnp.float32)
  label = jnp.asarray(rng.integers(0, min(classes, 11), shape), jnp.int32)
  variables = jax.jit(lambda: model.init(jax.random.key(0), image[:1], train=False))()
  if not flags.train:
    forward = jax.jit(lambda variables, image: model.apply(variables, image, train=False)["logits"])
    return lambda: jax.block_until_ready(forward(variables, image))

  weights = {"logits": 1.0} | ({} if model.aux_decoder is None else {"aux_logits": 0.4})
  tx = make_optimizer(dict(name="adam", learning_rate=1e-4), variables["params"])
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  holder = [sharding.place(create_state(model, variables, tx), mesh)]
  step = jit_step(make_step(make_loss(dict(weights=weights)), tx), mesh, holder[0])
  batch, key = (
    sharding.to_global({"image": np.asarray(image), "label": np.asarray(label)}, mesh),
    jax.random.key(0),
  )

  def run():
    holder[0], scalars = step(holder[0], batch, key)
    jax.block_until_ready((holder[0], scalars))

  return run


if __name__ == "__main__":
  main()
