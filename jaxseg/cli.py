"""`jaxseg`: what is there, and what it is made of.

jaxseg list                    the models
jaxseg info MODEL [--params]   one model: parameters, fields and their defaults
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import numpy as np

from jaxseg import catalog, models
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS
from jaxseg.train import runtime

_IMAGE = (1, 64, 64, 3)


def main(argv: Sequence[str] | None = None) -> None:
  """The console script; bad input ends in one sentence and exit code 2."""
  parser = argparse.ArgumentParser(prog="jaxseg", description="Semantic segmentation for JAX.")
  commands = parser.add_subparsers(dest="command", required=True)
  commands.add_parser("list", help="the models by name, with their parameters")
  info = commands.add_parser("info", help="one model: parameters, fields and their defaults")
  info.add_argument("model")
  info.add_argument("--num_classes", type=int, default=19, help="default: %(default)s, Cityscapes")
  info.add_argument("--params", action="store_true", help="every parameter's path, shape and count")
  flags = parser.parse_args(argv)
  with runtime.sentences("jaxseg"):
    if flags.command == "list":
      print("\n".join(listing()))
    else:
      print("\n".join(model_info(flags.model, num_classes=flags.num_classes, params=flags.params)))


def listing() -> list[str]:
  """One line a model: name, and parts."""
  lines = [f"{name:<24} {s.encoder} + {s.decoder}" for name, s in sorted(models.SYSTEMS.items())]
  return lines + [f"{name:<24} encoder alone" for name in sorted(ENCODERS)]


def model_info(name: str, *, num_classes: int = 19, params: bool = False) -> list[str]:
  """Lines about a model: its parameter count, every field with its default, and each parameter.

  Raises:
    ValueError: no such model (the nearest is named).
  """
  alone = name in ENCODERS
  model = models.create_model(name, num_classes=None if alone else num_classes)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros(_IMAGE, np.float32), train=False))
  leaves = jax.tree_util.tree_flatten_with_path(shapes["params"])[0]
  total = sum(int(np.prod(leaf.shape)) for _, leaf in leaves)
  lines = [f"{name}: {total:,} parameters" + ("" if alone else f" for {num_classes} classes")]
  for part, entry, published in _parts(name):
    lines.append(f"{part}:")
    for field, value in (catalog.defaults(entry) | published).items():
      if field != "num_classes":
        lines.append(f"  {field} = {value!r}")
  if params:
    lines.append("parameters:")
    for path, leaf in leaves:
      shape = "x".join(map(str, leaf.shape))
      lines.append(f"  {jax.tree_util.keystr(path, simple=True, separator='/')}  {shape}  {leaf.dtype}")
  return lines


def _parts(name: str):
  if name in ENCODERS:
    return [("encoder", ENCODERS[name], {})]
  system = models.SYSTEMS[name]
  parts = [
    ("encoder", ENCODERS[system.encoder], dict(system.encoder_fields)),
    ("decoder", DECODERS[system.decoder], dict(system.decoder_fields)),
  ]
  if system.aux_decoder is not None:
    parts.append(("aux_decoder", DECODERS[system.aux_decoder], dict(system.aux_decoder_fields)))
  return parts


if __name__ == "__main__":
  main(sys.argv[1:])
