r"""Learning beside PyTorch: the same weights, the same batches, the same recipe; losses, then mIoU.

  python benchmarks/learning.py --peers=../shared/peers --peer-python=peers/bin/python \
    --manual_dir=../shared/data/camvid --output=runs/learning --steps=50 --size=128x128 --batch=4 segformer_b0
  python benchmarks/learning.py ... --steps=750 --size=192x192 --batch=8 --seeds=0,1,2 --score cgnet_m3n21

For each seed our initial weights go to mmsegmentation's model in `../shared/peers` (through `to_torch`), our
pipeline writes the batches (geometry only, without colour distortion) to one file, and both train on it with
dropout and drop path 0. `--score` evaluates both on CamVid's val split, with our evaluation, which is exact.
`--double` says how far float32 itself goes: PyTorch's losses in float64, and how far both are from them.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg
from jaxseg import data, sharding
from jaxseg.config import load
from jaxseg.evaluation import evaluate
from jaxseg.train import create_state, jit_step, make_loss, make_optimizer, make_step
from jaxseg.types import Preprocess

PEER = pathlib.Path(__file__).resolve().parent / "learning_peer.py"
CAMVID = pathlib.Path(__file__).resolve().parent.parent / "configs" / "cgnet_m3n21_camvid.py"
CLASSES = 11
# What both sides train with; rates rise and fall as the published recipes' do, over the steps of the run.
RECIPES = {
  "cgnet_m3n21": dict(name="adam", learning_rate=1e-3, weight_decay=5e-4, power=0.9),
  "segformer_b0": dict(name="adamw", learning_rate=6e-5, weight_decay=0.01, power=1.0),
  "segnext_tiny": dict(name="adamw", learning_rate=6e-5, weight_decay=0.01, power=1.0),
  "deeplabv3plus_resnet50": dict(name="sgd", learning_rate=0.01, weight_decay=5e-4, momentum=0.9, power=0.9),
}


def main() -> None:
  """A line a seed, and everything in OUTPUT/MODEL-SEED.json."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("models", nargs="+", choices=sorted(RECIPES))
  parser.add_argument("--peers", required=True, type=pathlib.Path, help="folder with refmodels.py")
  parser.add_argument("--peer-python", required=True, help="interpreter with PyTorch and mmsegmentation")
  parser.add_argument("--manual_dir", required=True, help="CamVid in the SegNet layout")
  parser.add_argument("--output", required=True, type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=50)
  parser.add_argument("--size", default="128x128")
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--learning_rate", type=float, help="instead of the recipe's")
  parser.add_argument("--seeds", default="0")
  parser.add_argument("--score", action="store_true", help="mIoU of both on val")
  parser.add_argument("--double", action="store_true", help="PyTorch in float64 for 50 steps, too")
  flags = parser.parse_args()
  for model in flags.models:
    for seed in map(int, flags.seeds.split(",")):
      compare(model, seed, flags)


def compare(model: str, seed: int, flags: argparse.Namespace) -> None:
  """Trains both and writes down what came of it."""
  folder = (flags.output / f"{model}-{seed}").resolve()
  folder.mkdir(parents=True, exist_ok=True)
  config = load(f"{CAMVID}:cpu", overrides=[("data.manual_dir", flags.manual_dir)])
  with config.unlocked():
    config.data.crop_size = tuple(map(int, flags.size.split("x")))
  recipe = dict(RECIPES[model], steps=flags.steps, model=model, classes=CLASSES, std=[1.0] * 3)
  recipe["mean"] = list(config.preprocess.mean)
  if flags.learning_rate is not None:
    recipe["learning_rate"] = flags.learning_rate
  weights = list(config.loss.class_weights) if model == "cgnet_m3n21" else []
  recipe["class_weights"] = weights
  if model != "cgnet_m3n21":
    recipe |= dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
  (folder / "recipe.json").write_text(json.dumps(recipe))
  write_batches(config, folder, seed=seed, steps=flags.steps, batch=flags.batch)

  peer(flags, folder, "init")  # a file of the peer's layout, which tells us the model's fields
  net = jaxseg.from_pretrained(folder / "peer_init.pth")
  fields = {part: dict(net.fields.get(part) or {}) for part in ("encoder", "decoder", "aux_decoder")}
  for part, names in (
    ("encoder", ("drop_path_rate",)),
    ("decoder", ("dropout_rate", "aspp_dropout_rate")),
    ("aux_decoder", ("dropout_rate",)),
  ):
    module = getattr(net.model, part, None)
    fields[part] |= {name: 0.0 for name in names if hasattr(module, name)}
  network = jaxseg.create_model(net.arch, num_classes=CLASSES, **{k: v for k, v in fields.items() if v})
  fresh = jax.jit(lambda: network.init(jax.random.key(seed), jnp.zeros((1, 64, 64, 3)), train=False))()
  # What is drawn and not trained stays the peer's: the bases of the NMF.
  variables = {**fresh, **{name: net.variables[name] for name in net.variables if name == "buffers"}}
  for path, value in jaxseg.to_torch(dataclasses.replace(net, variables=variables)).items():
    np.save(folder / f"start-{path}.npy", value)

  preprocess = Preprocess(mean=tuple(recipe["mean"]), std=tuple(recipe["std"]))
  ours, variables = train(network, variables, recipe, folder, preprocess)
  peer(flags, folder, "train")
  theirs = json.loads((folder / "peer_losses.json").read_text())
  first = min(50, flags.steps)
  apart = [abs(a - b) / b for a, b in zip(ours[:first], theirs[:first], strict=True)]
  result = dict(model=model, seed=seed, ours=ours, theirs=theirs, worst_of_50=max(apart))
  line = f"{model} seed {seed}: losses of the first {first} steps differ by {100 * max(apart):.3f} % at most"
  if flags.double:
    peer(flags, folder, "double")
    exact = json.loads((folder / "peer_double.json").read_text())[:first]
    result["double"] = exact
    far = [max(abs(a - b) / b for a, b in zip(side, exact, strict=False)) for side in (ours, theirs)]
    line += f"; from float64 ours {100 * far[0]:.3f} %, theirs {100 * far[1]:.3f} %"
  if flags.score:
    trained = jaxseg.from_pretrained(folder / "peer_final.pth")
    result["miou"] = [
      score(network, variables, preprocess, config),
      score(trained.model, trained.variables, preprocess, config),
    ]
    line += "; val mIoU {:.4f} ours, {:.4f} theirs".format(*result["miou"])
  (flags.output / f"{model}-{seed}.json").write_text(json.dumps(result))
  print(line, flush=True)


def write_batches(config, folder: pathlib.Path, *, seed: int, steps: int, batch: int) -> None:
  """images.npy (steps, batch, h, w, 3) and labels.npy, uint8."""
  rows, columns = config.data.crop_size
  images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (steps, batch, rows, columns, 3))
  labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, (steps, batch, rows, columns))
  batches = data.train_batches(config.data, batch_size=batch, seed=seed, start_step=0)
  for step in range(steps):
    example = next(batches)
    images[step], labels[step] = example["image"], example["label"]


def peer(flags: argparse.Namespace, folder: pathlib.Path, what: str) -> None:
  """Runs the PyTorch half, in a process of its own."""
  interpreter = str(pathlib.Path(flags.peer_python).absolute())
  subprocess.run([interpreter, str(PEER), what, str(folder)], cwd=flags.peers, check=True)


def train(network, variables, recipe: dict, folder: pathlib.Path, preprocess: Preprocess):
  """Losses of all steps, and the variables after the last."""
  keys = ("name", "learning_rate", "weight_decay", "momentum")
  optimizer = {key: recipe[key] for key in keys if key in recipe}
  optimizer["schedule"] = dict(name="poly", power=recipe["power"], total_steps=recipe["steps"])
  tx = make_optimizer(optimizer, variables["params"])
  normalize = "weights" if recipe["class_weights"] else "valid"
  maps = {"logits": 1.0} | ({} if network.aux_decoder is None else {"aux_logits": 0.4})
  loss = make_loss(dict(class_weights=recipe["class_weights"], normalize_by=normalize, weights=maps))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state = sharding.place(create_state(network, variables, tx), mesh)

  def prepare(batch, key):
    return {**batch, "image": preprocess(batch["image"])}

  step = jit_step(make_step(loss, tx, prepare=prepare), mesh, state)
  images, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels"))
  losses = []
  for image, label in zip(images, labels, strict=True):
    batch = sharding.to_global({"image": np.asarray(image), "label": label.astype(np.int32)}, mesh)
    state, scalars = step(state, batch, jax.random.key(0))
    losses.append(float(scalars["loss"]))
  return losses, jax.device_get(state.variables)


def score(model, variables, preprocess: Preprocess, config) -> float:
  """Mean IoU on the val split."""
  batches = data.eval_batches(config.data, "val", batch_size=4)
  return evaluate(model, variables, batches, num_classes=CLASSES, preprocess=preprocess).miou


if __name__ == "__main__":
  main()
