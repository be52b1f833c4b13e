"""A model as a file that runs without jaxseg: StableHLO, ONNX, LiteRT, and a page for the browser.

What is exported takes uint8 images b h w c (RGB, or the channels that the model takes) and gives the class
of every pixel, b h w, or probabilities b h w k: preprocessing, BatchNorms (folded into the convolutions
before them) and the resize to the image's size are inside. Every file is run by its own runtime, in a process
without jaxseg, and compared with `Net.probabilities` or `Net.predict` before `export` returns.
"""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from jaxseg import catalog, lazy
from jaxseg.errors import UserError
from jaxseg.export import check, program
from jaxseg.export.eight_bits import with_int8_weights
from jaxseg.export.program import Output, Weights
from jaxseg.hub import Net
from jaxseg.hub.comparison import Comparison

__all__ = ["FORMATS", "Comparison", "Format", "Output", "Weights", "export", "with_int8_weights"]


class Format(NamedTuple):
  """One format.

  Attributes:
    module: has `write(program, path)`.
    suffix: of its files; "" is a folder.
    symbolic: whether sizes may be left open.
    runtime: what runs it, in words.
  """

  module: str
  suffix: str
  symbolic: bool
  runtime: str


FORMATS: Mapping[str, Format] = {
  "stablehlo": Format("jaxseg.export.stablehlo", ".stablehlo", True, "jax.export"),
  "onnx": Format("jaxseg.export.onnx", ".onnx", True, "ONNX Runtime"),
  "litert": Format("jaxseg.export.litert", ".tflite", False, "the LiteRT interpreter"),
  "web": Format("jaxseg.export.web", "", True, "ONNX Runtime"),
}


def export(
  net: Net,
  path: str | os.PathLike,
  *,
  format: str = "stablehlo",
  size: tuple[int, int] | None = None,
  batch: int | None = None,
  output: str = "labels",
  weights: str = "float32",
  images: Sequence[np.ndarray] = (),
  progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
  """Writes a file (or the folder of a page), after it was run and compared with `net`.

  Args:
    net: the model.
    path: the file, or for "web" a folder that is empty or not there yet.
    format: "stablehlo", "onnx", "litert" or "web".
    size: rows and columns of the images; None leaves batch, rows and columns open (LiteRT needs a size).
    batch: images at once; None is any number where `size` is None, and one where it is given.
    output: "labels" int32 b h w, or "probabilities" float32 b h w k.
    weights: "float32", or "int8" for a smaller file; see `with_int8_weights`.
    images: uint8 h w c to compare with, of `size` where it is given; three drawn ones by default.
    progress: is told what is being done, a line each.

  Raises:
    UserError: an unknown format or size, a model that this format cannot hold, a library that is not
      installed (`jaxseg[export]`), or a place that cannot be written.
    RuntimeError: the file does not give what the model gives; it is not kept.
  """
  if format not in FORMATS:
    raise UserError(f"format is {format!r}; {catalog.suggestion(format, FORMATS)}")
  about = FORMATS[format]
  _check(net, about, format, size, batch, output)
  if weights not in get_args(Weights):
    raise UserError(f"weights is {weights!r}; {catalog.suggestion(weights, get_args(Weights))}")
  if size is not None and batch is None:
    batch = 1
  target = pathlib.Path(path)
  _try_place(target, is_folder=not about.suffix)
  writer = lazy.load(about.module)
  pictures = check.pictures(size, channels=net.preprocess.channels) if not images else list(images)
  wanted = with_int8_weights(net) if weights == "int8" else net
  exported = program.make(wanted, size=size, batch=batch, output=output, weights=weights)
  with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export") as folder:
    made = pathlib.Path(folder) / target.name
    progress("converting")
    model_file = writer.write(exported, made)
    progress(f"running {len(pictures)} images in {about.runtime}")
    found = check.compare(wanted, exported, writer.RUNNER, model_file, pictures)
    if not found.agrees:
      raise RuntimeError(f"the {format} file does not give what the model gives: {found.text()}")
    if weights == "int8":
      found = dataclasses.replace(found, labels_kept=check.labels_kept(net, wanted, pictures))
    if target.is_dir():
      target.rmdir()  # an empty one, as was checked
    shutil.move(made, target)
  return found


def _check(net: Net, about: Format, format: str, size, batch, output) -> None:
  """Raises a UserError about what was asked for."""
  if not net.classes or not hasattr(net.model, "decoder"):
    raise UserError(f"{net.arch} without a segmentation head gives no label map; export a segmentation model")
  if output not in ("labels", "probabilities"):
    raise UserError(f"output is {output!r}; expected 'labels' or 'probabilities'")
  if format == "web" and net.preprocess.channels != 3:
    raise UserError(
      f"a page reads RGB images, and {net.arch} takes {net.preprocess.channels} channels; export onnx,"
      " stablehlo or litert"
    )
  if format == "web" and net.info.multi_label:
    raise UserError(
      "the page shows one class a pixel, and this model may give several; export onnx or litert"
    )
  if format == "web" and output != "labels":
    raise UserError("a page shows label maps; leave out output='probabilities'")
  if size is not None and (len(size) != 2 or not all(isinstance(n, int) and n >= 32 for n in size)):
    raise UserError(f"size is {size}; expected rows and columns of at least 32 pixels, such as (512, 512)")
  if batch is not None and batch < 1:
    raise UserError(f"batch is {batch}; expected a positive number, or None for any")
  if size is not None:
    return
  if not about.symbolic:
    raise UserError(f"{format} files have fixed sizes; give one, such as size=(512, 512)")
  if net.preprocess.size is not None:
    raise UserError(
      f"{net.arch}'s images are resized to {net.preprocess.size} with antialiasing, by weights that depend on"
      f" their size; give that size, such as size={tuple(net.preprocess.size)}"
    )
  if tuple(net.model.scales) != (1.0,):
    raise UserError(
      f"{net.arch} sees each image at {len(net.model.scales)} scales, which need a size; give one"
    )


def _try_place(target: pathlib.Path, *, is_folder: bool) -> None:
  """Raises a UserError where nothing can be written, before anything is converted."""
  if target.is_dir() and (not is_folder or any(target.iterdir())):
    raise UserError(
      f"{str(target)!r} is a folder{' with files in it' if is_folder else ''}; give another path"
    )
  if is_folder and target.is_file():
    raise UserError(f"{str(target)!r} is a file; give a folder")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent):
      pass
  except OSError as error:
    raise UserError(f"{str(target)!r} cannot be written ({error.strerror or error})") from None
