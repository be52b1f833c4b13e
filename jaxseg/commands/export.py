"""Writes a model as a file that runs without jaxseg, or as a page for the browser.

  jaxseg export model.safetensors --to=onnx --output=model.onnx
  jaxseg export runs/mine --to=litert --size=512x512 --output=model.tflite
  jaxseg export model.safetensors --to=web --output=page

It takes uint8 images b h w c (RGB, or the channels that the model takes) and gives the class of every
pixel; preprocessing is inside. Without `--size`, batch and size stay open (LiteRT needs one). Before the
command says that it is done, the file was run by its own runtime on three images and compared with the model.
"""

import argparse
from collections.abc import Sequence

from jaxseg import lazy
from jaxseg.commands.flags import parse_size
from jaxseg.console import print_line
from jaxseg.errors import printable
from jaxseg.hub import from_pretrained


def add_flags(parser: argparse.ArgumentParser) -> None:
  """SOURCE, --to, --output, --size, --batch, --weights, --probabilities."""
  parser.add_argument("source", help="what jaxseg.from_pretrained reads: a file, a workdir, org/name")
  parser.add_argument(
    "--to", choices=("stablehlo", "onnx", "litert", "web"), required=True, help="the format"
  )
  parser.add_argument("--output", metavar="PATH", required=True, help="the file, or for web a new folder")
  parser.add_argument("--size", metavar="HxW", help="of the images; open unless given")
  parser.add_argument("--batch", type=int, help="images at once; open unless --size is given, then 1")
  parser.add_argument("--weights", choices=("float32", "int8"), default="float32", help="of the kernels")
  parser.add_argument("--probabilities", action="store_true", help="of every class, in place of labels")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Exports; the lines say what was compared."""
  del changes
  size = parse_size(flags.size, "--size") if flags.size else None
  found = lazy.load("jaxseg.export").export(
    from_pretrained(flags.source),
    flags.output,
    format=flags.to,
    size=size,
    batch=flags.batch,
    output="probabilities" if flags.probabilities else "labels",
    weights=flags.weights,
    progress=print_line,
  )
  faster = found.seconds_of_net / found.seconds
  lines = [
    found.text(),
    f"one image takes {found.seconds:.3f} s, {faster:.2f} times as fast as jaxseg here",
    f"{found.bytes / 1e6:.1f} MB",
    f"written to {printable(flags.output)}",
  ]
  if flags.to == "web":
    lines.append(f"python3 -m http.server --directory {printable(flags.output)}, then http://localhost:8000")
  return lines
