"""Segments images and videos: an overlay, a label map in the classes' colours, and probabilities on request.

  jaxseg predict photo.jpg --source=cgnet_cityscapes.pth
  jaxseg predict holiday/ ride.mp4 --source=runs/mine --output=segmented

For NAME.jpg the output folder gets NAME.jpg.overlay.png and NAME.jpg.label.png, a palette image whose
values are the class ids; with `--probabilities` also NAME.jpg.probabilities.npz (float16, h w k). For a video
it gets NAME.mp4.overlay.mp4 (`pip install 'jaxseg[video]'`). A folder is searched with all folders in it, its
files keep their places, and contact_sheet.png shows up to 24 of them. What cannot be read is named at the
end, the rest is done, and the exit code is 2.

An image reaches the network as it is, or by the flags below; a workdir of train.py brings the rule and the
CRF of its own config.eval, over which the flags go. Images of more than eight sizes are resized to
eight for the network, since each is compiled, and their labels come back at the image's own size; `--exact`
takes every image as it is. Images of more than 8 bits are read by the range of values with which the weights
were trained (config.data.value_range, which travels with them), or by `--value_range`. An image of more than
6 million pixels goes through the network in windows, in bounded memory.
"""

import argparse
import collections
import dataclasses
import functools
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxseg import lazy
from jaxseg.classes import as_label
from jaxseg.commands import outputs, predict_files, predict_video
from jaxseg.commands.flags import parse_numbers, parse_size
from jaxseg.commands.predict_files import File
from jaxseg.commands.predict_windows import Windows, sides
from jaxseg.config.values import nearest
from jaxseg.console import print_line
from jaxseg.crf import Settings
from jaxseg.data import overlay
from jaxseg.data.progress import Progress
from jaxseg.data.source import as_rgb
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.hub import Net, from_pretrained
from jaxseg.hub.reading import read_image
from jaxseg.hub.segmenter import Segmenter

_THUMBNAIL = 320  # the longer side of an image on the contact sheet
_MOST_SHOWN = 24
_EVERY = 10.0  # seconds between lines of a long video or a large image
_WRITES = 4  # results that wait for the disk


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The files, --source, --output and how an image reaches the network."""
  parser.add_argument("files", nargs="+", metavar="IMAGE|FOLDER|VIDEO")
  parser.add_argument(
    "--source", required=True, help="weights, a workdir, or org/name on the Hugging Face hub"
  )
  parser.add_argument("--output", metavar="DIR", default="runs/predict", help="default: %(default)s")
  parser.add_argument(
    "--value_range",
    metavar="LOW,HIGH",
    help="what becomes 0 and 255 in images of more than 8 bits; default: as the weights were trained",
  )
  parser.add_argument(
    "--mode",
    choices=("auto", "whole", "slide"),
    default="auto",
    help="the network over the whole image or over windows; auto: the workdir's, large images by windows",
  )
  parser.add_argument("--crop_size", metavar="HxW", help="of a window; default: 512x512")
  parser.add_argument("--stride", metavar="HxW", help="between windows; two thirds of them unless given")
  parser.add_argument("--resize", metavar="LONGxSHORT", help="fit the image into that before the network")
  parser.add_argument(
    "--scales", metavar="S,S", help="of which the probabilities are averaged; default: 1, or the workdir's"
  )
  parser.add_argument("--flip", action="store_true", help="add the mirrored image")
  parser.add_argument(
    "--threshold",
    type=float,
    help="probability from which on a pixel has a class, of models of several classes a pixel; default: 0.5,"
    " or the workdir's",
  )
  parser.add_argument(
    "--crf",
    nargs="?",
    const="",
    metavar="KEY=VALUE,...",
    help="refine by the fully-connected CRF: the papers' values, or a workdir's, changed by what is given:"
    " w1, sxy, srgb, w2, smooth, steps, method",
  )
  parser.add_argument("--probabilities", action="store_true", help="write them too")
  parser.add_argument("--opacity", type=float, default=0.5, help="of the colours in overlays, 0 to 1")
  parser.add_argument("--exact", action="store_true", help="resize no image to share the size of others")
  parser.add_argument(
    "--batch_size", type=int, help="images of one input size at once; default: 8, and 1 on a CPU"
  )


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Segments all files; the lines say what was written.

  Raises:
    UserError: a wrong flag; or at the end, that files could not be read, with what is wrong with each.
  """
  del changes
  if not 0 <= flags.opacity <= 1:
    raise UserError(f"--opacity is {flags.opacity}; expected 0 (the image) to 1 (the colours)")
  if flags.batch_size is not None and flags.batch_size < 1:
    raise UserError(f"--batch_size is {flags.batch_size}; expected 1 image or more")
  rule, crf = make_rule(flags, _config_eval(flags.source))
  files = predict_files.list_files(flags.files, flags.output)
  if any(file.is_video for file in files):
    lazy.load("av")
    if flags.probabilities:
      raise UserError("--probabilities are written for images alone; leave it out, or leave out the videos")
  with warnings.catch_warnings():
    # Pillow warns of images that are large; ours go through in windows, and read_size has a limit.
    warnings.simplefilter("ignore", lazy.load("PIL.Image").DecompressionBombWarning)
    return _segment(flags, rule, crf, files)


def _segment(
  flags: argparse.Namespace, rule: InferenceRule, crf: Settings | None, files: list[File]
) -> list[str]:
  output = pathlib.Path(outputs.try_folder(flags.output))
  net = from_pretrained(flags.source, preprocess=_given_range(flags.value_range))
  images, refused = [], []
  for file in files:
    try:
      if not file.is_video:
        images.append(dataclasses.replace(file, size=predict_files.read_size(file.path, net.preprocess)))
    except UserError as error:
      refused.append(str(error))
  large = [image for image in images if image.is_large and flags.mode != "whole"]
  if large and (rule.scales != (1.0,) or rule.flip or rule.resize or crf is not None or flags.probabilities):
    raise UserError(
      f"{printable(large[0].path)} has more than {predict_files.LARGE:,} pixels and goes through the network"
      " in windows, which take no --scales, --flip, --resize, --crf or --probabilities; leave these out, or"
      " give --mode=whole"
    )
  if net.preprocess.channels != 3 and any(file.is_video for file in files):
    raise UserError(
      f"{flags.source} takes images of {net.preprocess.channels} channels, and videos have three; leave them"
      " out"
    )
  if crf is not None and net.info.multi_label:
    raise UserError("--crf gives each pixel one class, and one of this model may have several; leave it out")
  if flags.threshold is not None and not net.info.multi_label:
    raise UserError("--threshold is for models of several classes a pixel; this one gives each exactly one")
  if not net.classes or not hasattr(net.model, "decoder"):
    raise UserError(f"{flags.source} holds {net.arch} without a segmentation head; give a segmentation model")
  segmenter = Segmenter(
    net.model,
    net.variables,
    preprocess=net.preprocess,
    rule=rule,
    crf=None if crf is None else dict(kernels=crf.kernels, steps=crf.steps, method=crf.method),
  )
  by_windows = Windows(net, flags, rule.threshold)
  batch_size = flags.batch_size or (1 if jax.default_backend() == "cpu" else 8)
  began, shown, frames = time.monotonic(), [], 0
  with Progress(len(files)) as progress, _Writes(net, output, flags.opacity) as writes:

    def finish(file: File, pixels: np.ndarray, labels: np.ndarray, probabilities: Any = None) -> None:
      writes.add(file, pixels, labels, probabilities)
      if len(files) > 1 and len(shown) < _MOST_SHOWN:
        step = max(1, max(file.size) // _THUMBNAIL)
        # Copies: a view would keep the whole image.
        small_copy = {
          "image": as_rgb(pixels[::step, ::step]).copy(),
          "label": labels[::step, ::step].astype(np.uint16),
        }
        shown.append({"id": printable(file.name), **small_copy})
      progress.advance()

    small = [image for image in images if image not in large]
    for batch, rows, segment in _batches(segmenter, small, batch_size, exact=flags.exact, refused=refused):
      if flags.probabilities:
        for file, pixels in batch:
          probabilities = segment.probabilities(pixels)
          finish(file, pixels, _labels_of(probabilities, net, rule.threshold), probabilities)
        continue
      for (file, pixels), labels in zip(
        batch, segment.labels([pixels for _, pixels in batch], count=rows), strict=True
      ):
        finish(file, pixels, labels)
    for file in large:
      try:
        pixels = read_image(file.path, preprocess=net.preprocess)
      except UserError as error:
        refused.append(str(error))
        continue
      finish(file, pixels, by_windows(pixels, _say_now_and_then(printable(file.name), "windows")))
    for file in (file for file in files if file.is_video):
      try:
        frames += predict_video.segment_video(
          file.path,
          output / file.name.with_name(f"{file.name.name}.overlay.mp4"),
          lambda pixels: _frame_labels(pixels, batch_size, segmenter, by_windows, flags.mode),
          palette=net.info.drawn.palette,
          opacity=flags.opacity,
          multi_label=net.info.multi_label,
          batch_size=batch_size,
          progress=_say_now_and_then(printable(file.name), "frames"),
        )
      except UserError as error:
        refused.append(str(error))
      progress.advance()
  if len(shown) > 1:
    sheet = predict_files.png(overlay.sheet(shown, net.info))
    outputs.write(outputs.epath.Path(output / predict_files.SHEET), sheet)
  done = len(files) - len(refused)
  line = f"{done} of {len(files)} files in {time.monotonic() - began:.1f} s, written to {printable(output)}"
  line += f" ({frames} frames of video)" if frames else ""
  if not refused:
    return [line]
  if len(files) == 1:
    raise UserError(refused[0])
  print_line(line)
  raise UserError(
    "\n  ".join([f"{len(refused)} of {len(files)} files could not be read or not to the end:", *refused])
  )


def _given_range(text: str | None) -> dict[str, tuple[float, ...]] | None:
  """`--value_range` as `from_pretrained` takes it."""
  if text is None:
    return None
  numbers = parse_numbers(text, "--value_range", low=-1e30, high=1e30)
  if len(numbers) != 2 or numbers[0] >= numbers[1]:
    raise UserError(f"--value_range is {printable(text)!r}; expected two numbers, the lower first: 0,65535")
  return {"value_range": tuple(map(float, numbers))}


def _batches(
  segmenter: Segmenter, files: list[File], batch_size: int, *, exact: bool, refused: list[str]
) -> Iterator[tuple[list[tuple[File, np.ndarray]], int, Segmenter]]:
  """([(file, its pixels)], rows of the batch, what segments it); the next batch is read meanwhile.

  Batches of one input size come after one another, and a line says when a new one is compiled. What cannot
  be read goes to `refused`.
  """
  if not exact and files:
    few = segmenter.for_sizes([file.size for file in files])
    if few is not segmenter:
      print_line("images of many sizes are resized to a few for the network; --exact takes each as it is")
    segmenter = few
  everything, files = files, []
  for file in sorted(everything, key=lambda file: str(file.path)):
    try:
      predict_files.check_size(file.path, file.size, segmenter.extents(file.size))
      files.append(file)
    except UserError as error:
      refused.append(str(error))
  sizes = [file.size for file in files]
  read = functools.partial(read_image, preprocess=segmenter.preprocess)
  batches = list(segmenter.batches(sizes, batch_size=batch_size))
  count = len({segmenter.key(size) for size in sizes})
  compiled = set()
  with ThreadPoolExecutor(max_workers=2, thread_name_prefix="read") as pool:
    ahead: collections.deque[list[Future]] = collections.deque()
    for i, (numbers, rows) in enumerate(batches):
      while len(ahead) < 2 and i + len(ahead) < len(batches):
        ahead.append([pool.submit(read, files[n].path) for n in batches[i + len(ahead)][0]])
      batch = []
      for number, pixels in zip(numbers, ahead.popleft(), strict=True):
        try:
          batch.append((files[number], pixels.result()))
        except UserError as error:
          refused.append(str(error))
      key = segmenter.key(sizes[numbers[0]])
      if not batch:
        continue
      if key not in compiled:
        compiled.add(key)
        if count > 1:
          print_line(f"compiling {len(compiled)} of {count}")
      yield batch, rows, segmenter


def _labels_of(probabilities: np.ndarray, net: Net, threshold: float) -> np.ndarray:
  if not net.info.multi_label:
    return probabilities.argmax(-1)
  return as_label(probabilities >= threshold)


class _Writes:
  """Results on their way to the disk, a few at a time, while the next images are segmented."""

  def __init__(self, net: Net, output: pathlib.Path, opacity: float):
    self._net, self._output, self._opacity = net, output, opacity
    self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
    self._pending: collections.deque[Future] = collections.deque()

  def add(self, file: File, pixels: np.ndarray, labels: np.ndarray, probabilities: Any) -> None:
    """Raises UserError where an earlier result could not be written."""
    # A large one is waited for: two of them would not fit into memory.
    while len(self._pending) >= (1 if file.is_large else _WRITES):
      self._pending.popleft().result()
    write, place = predict_files.write_results, self._output / file.name
    settings = dict(net=self._net, opacity=self._opacity)
    self._pending.append(self._pool.submit(write, place, pixels, labels, probabilities, **settings))

  def __enter__(self) -> "_Writes":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    self._pool.shutdown(wait=True)
    if kind is None:
      for pending in self._pending:
        pending.result()


def _frame_labels(
  frames: Sequence[np.ndarray],
  rows: int,
  segmenter: Segmenter,
  by_windows: Windows,
  mode: str,
) -> list[np.ndarray]:
  if frames[0].shape[0] * frames[0].shape[1] > predict_files.LARGE and mode == "auto":
    return [by_windows(frame) for frame in frames]
  return segmenter.labels(frames, count=rows)


def _say_now_and_then(name: str, what: str) -> Callable[[int, int], None]:
  last = [time.monotonic()]

  def say(done: int, total: int) -> None:
    if time.monotonic() - last[0] >= _EVERY:
      last[0] = time.monotonic()
      print_line(f"{name}: {done:,}{f' of {total:,}' if total else ''} {what}")

  return say


def _config_eval(source: str) -> Any:
  """`config.eval` of a workdir; {} for weights."""
  if pathlib.Path(source).is_dir() or ("://" in source and not source.startswith("hf://")):
    record = lazy.load("jaxseg.config.record")
    if record.is_workdir(source):
      return record.read_config(source).eval
  return {}


def make_rule(flags: argparse.Namespace, known: Any) -> tuple[InferenceRule, Settings | None]:
  """How an image reaches the network, and the CRF: the flags over `known`, a workdir's `config.eval`.

  Raises:
    UserError: a flag, or a combination, that makes no sense.
  """
  values: dict[str, Any] = {}
  if known:
    rule = lazy.load("jaxseg.config.rule").make_inference_rule(known)
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
  crop, stride = sides(flags)
  if flags.mode != "auto":
    values["mode"] = flags.mode
    if flags.mode == "slide":
      values |= {"crop_size": crop, "stride": stride}
    else:
      values |= {"crop_size": (0, 0), "stride": (0, 0)}
  elif values.get("mode") == "slide" and flags.crop_size:
    values |= {"crop_size": crop, "stride": stride}
  if flags.resize is not None:
    values["resize"] = parse_size(flags.resize, "--resize")
  if flags.scales is not None:
    values["scales"] = parse_numbers(flags.scales, "--scales", low=0.05, high=16)
  if flags.flip:
    values["flip"] = True
  if flags.threshold is not None:
    values["threshold"] = flags.threshold
  crf = None if flags.crf is None else _crf(flags.crf, dict(known.get("crf", {})))
  return InferenceRule(**values), crf


def _crf(text: str, known: dict[str, Any]) -> Settings:
  """The papers' settings, a workdir's, and what the flag says, the later over the earlier."""
  names = [field.name for field in dataclasses.fields(Settings)]
  values = {name: known[name] for name in names if name in known}
  for part in filter(None, text.split(",")):
    name, equals, value = part.partition("=")
    if name not in names or not equals:
      raise UserError(
        f"--crf holds {printable(part)!r}; expected KEY=VALUE with {', '.join(names)}{nearest(name, names)}"
      )
    if name == "method":
      values[name] = value
      continue
    try:
      values[name] = int(value) if name == "steps" else float(value)
    except ValueError:
      raise UserError(f"--crf has {name}={printable(value)!r}; expected a number") from None
  return Settings(**values)
