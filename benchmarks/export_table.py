r"""Exports one model of each family to each format, with fixed and with open sizes, as a table.

  python benchmarks/export_table.py --weights cgnet_m3n21=cgnet_cityscapes.pth

A row is what `Net.export` compared: the file in its own runtime, in a process without jaxseg, against the
model on three drawn images. Models without a file in `--weights` get random weights of ordinary size. The
images have 128x160 pixels, and 97x129 where sizes are open. Needs `jaxseg[export]`.
"""

import argparse
import math
import pathlib
import tempfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg
from jaxseg.errors import UserError
from jaxseg.export import FORMATS
from jaxseg.types import Preprocess

MODELS = ("segnext_tiny", "segformer_b0", "cgnet_m3n21", "deeplabv3plus_resnet50")
SIZE = (128, 160)
CLASSES = 19


def main() -> None:
  """One row an export."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--models", nargs="+", default=MODELS)
  parser.add_argument("--formats", nargs="+", default=["stablehlo", "onnx", "litert"], choices=list(FORMATS))
  parser.add_argument("--sizes", nargs="+", default=["fixed", "open"], choices=["fixed", "open"])
  parser.add_argument("--kernels", default="float32", choices=["float32", "int8"])
  parser.add_argument("--weights", nargs="*", default=[], metavar="MODEL=FILE")
  flags = parser.parse_args()
  files = dict(word.split("=", 1) for word in flags.weights)
  print("| model | format | sizes | labels equal | largest difference | file | speed |")
  print("|---|---|---|---|---|---|---|")
  for name in flags.models:
    net = jaxseg.from_pretrained(files[name]) if name in files else random_net(name)
    for format in flags.formats:
      for sizes in flags.sizes:
        print(f"| {name} | {format} | {sizes} | {row(net, format, sizes, flags.kernels)} |", flush=True)


def random_net(name: str) -> jaxseg.Net:
  """A model with random weights that keep the size of what passes through; nothing is compiled."""
  model = jaxseg.create_model(name, num_classes=CLASSES)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  variables = jax.tree_util.tree_map_with_path(_value, shapes)
  classes = tuple(f"class{i}" for i in range(CLASSES))
  preprocess = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
  return jaxseg.Net(model, variables, preprocess, classes, np.zeros((CLASSES, 3), np.uint8), name)


def _value(path, leaf) -> np.ndarray:
  random = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
  if path[-1].key in ("var", "bases"):  # positive
    value = random.uniform(0.5, 1.5, leaf.shape)
  elif leaf.ndim > 1:
    value = random.standard_normal(leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
  else:
    value = (path[-1].key == "scale") + 0.1 * random.standard_normal(leaf.shape)
  return value.astype(leaf.dtype)


def row(net: jaxseg.Net, format: str, sizes: str, kernels: str) -> str:
  """The cells of one export; of one that fails, the last line that was said."""
  with tempfile.TemporaryDirectory() as folder:
    try:
      found = net.export(
        pathlib.Path(folder) / "file",
        format=format,
        size=SIZE if sizes == "fixed" else None,
        output="probabilities",
        weights=kernels,
      )
    except UserError as error:
      return f"{error} | | |"
    except Exception as error:
      lines = str(error).strip().splitlines() or [""]
      return f"{type(error).__name__}: {lines[0][:200]} … {lines[-1][:200]} | | |".replace("\n", " ")
  return (
    f"{100 * found.labels_equal:.3f} % | {found.largest_difference:.1e} | {found.bytes / 1e6:.1f} MB |"
    f" {found.seconds_of_net / found.seconds:.2f} |"
  ).removesuffix(" |")


if __name__ == "__main__":
  main()
